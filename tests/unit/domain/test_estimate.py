"""What a job will take, by worked numbers."""

import pytest

from domain import estimate
from domain.catalogue import catalogue
from domain.default_space import at_defaults, job_space
from domain.estimate import Rehearsed
from domain.job import Budget, JobSpec, Objective, ResolvedSource

SOURCE = ResolvedSource(ref="torchvision:resnet18", backbone="resnet18", kind="torchvision")


def a_job(**overrides: object) -> JobSpec:
    space = job_space("classification", (SOURCE,), catalogue(), n_train=300, has_teacher=False, overrides=overrides)
    return JobSpec(task="classification", sources=(SOURCE,), space=space, budget=Budget(trials=6),
                   objectives=(Objective(name="accuracy"),), n_folds=1)  # fmt: skip


def test_a_trial_prepares_steps_and_looks_at_val_in_every_fit() -> None:
    # 100 steps of 0.2 s = 20 s; four looks at 50 items of 0.03 s = 6 s, more than a tenth of the steps; 4 s before.
    assert estimate.trial_s(0.2, 100, 4.0, 0.03, n_val=50, n_fits=1) == pytest.approx(33.0)
    assert estimate.trial_s(0.2, 100, 4.0, 0.03, n_val=50, n_fits=4) == pytest.approx(123.0)
    assert estimate.trial_s(0.2, 100, 0.0, 0.001, n_val=50, n_fits=1) == pytest.approx(22.1), "a tenth of the steps"


def test_what_is_kept_for_the_finish_grows_with_what_it_has_to_do() -> None:
    found = Rehearsed(s_per_item=0.1, s_per_item_exported=0.06, export_s=8.0)
    # Four networks meet 50 items: 20 s. Export: 8 s. Checked on 100 items by both: 16 s. A quarter more, and 3 s.
    assert estimate.finish_s(found, n_test=50, n_checked=100, n_networks=4) == pytest.approx(3 + 1.25 * 44)
    # Three members look three times at 20 items of val and once at 50 of test: 33 s; two more exports: 16 s.
    assert estimate.combining_s(found, n_val=20, n_test=50, n_members=3) == pytest.approx(1.25 * 49)


@pytest.mark.parametrize(
    ("budget", "n_parallel", "seconds"),
    [
        (Budget(trials=10), 1, 10 * 30 + 20),
        (Budget(trials=10), 4, 3 * 30 + 20),
        (Budget(trials=10, wall_s=100), 1, 100),
        (Budget(device_s=120), 2, 60 + 20),
    ],
)
def test_the_whole_job_takes_what_its_budget_lets_it(budget: Budget, n_parallel: int, seconds: float) -> None:
    assert estimate.job_s(budget, 30.0, 20.0, n_parallel) == pytest.approx(seconds)


def test_memory_grows_in_a_straight_line_with_the_batch() -> None:
    # 1 GB before anything, 3 GB at 32: 1/16 GB per item of the batch. 64 needs 5 GB, 128 needs 9 GB.
    sizes = estimate.fitting((16, 32, 64, 128), measured_at=32, base=10**9, peak=3 * 10**9, limit=5 * 10**9)
    assert sizes == (16, 32, 64)


def test_smaller_batches_leave_the_rest_of_the_job_alone() -> None:
    spec = a_job()
    assert estimate.batch_sizes(spec) == (16, 32, 64, 128)
    smaller = estimate.with_batch_sizes(spec, (16,))
    assert estimate.batch_sizes(smaller) == (16,)
    before, after = at_defaults(spec, SOURCE.ref), at_defaults(smaller, SOURCE.ref)
    assert (before.pop("data.batch_size"), after.pop("data.batch_size")) == (32, 16)
    assert before == after
    assert estimate.batch_sizes(a_job(**{"data.batch_size": 64})) == (64,)


def test_disk_holds_pixels_at_every_size_and_checkpoints() -> None:
    # ResNet-18 resizes to 256 for a crop of 224; at 112 that is a canvas of 128.
    spec = a_job(**{"data.resolution": [96, 224]})
    margin = 2 * round(16 / 224 * 96)
    assert estimate.packs_bytes(spec, catalogue(), 100) == 100 * 3 * (256**2 + (96 + margin) ** 2)
    # Kept: 3; at work: 2, each with two resume points of four copies; the bundle: 6 copies.
    assert estimate.blob_bytes(1000, n_kept=3, n_parallel=2) == 1000 * (3 + 2 + 2 * 2 * 4 + 6)
    assert estimate.blob_bytes(1000, n_kept=3, n_parallel=2, n_resting=5) == 1000 * (3 + 2 + 2 * 2 * 4 + 5 * 4 + 6)


def test_as_many_trials_may_rest_as_the_budget_has_or_its_time_is_a_guess_for() -> None:
    """Of nine trials, one runs in full, two rest at 1/3 and six at 1/9: 7/3 of a trial's time leave eight that rest."""
    assert estimate.n_resting(Budget(trials=40, wall_s=1e6), 10.0, 2) == 40
    assert estimate.n_resting(Budget(wall_s=2100.0), 7.0, 1) == 1029  # 300 trials' time: 128.57 times 8
    assert estimate.n_resting(Budget(wall_s=2100.0), 7.0, 2) == 2058
    assert estimate.n_resting(Budget(wall_s=2100.0, device_s=700.0), 7.0, 1) == 343
    assert estimate.n_resting(Budget(wall_s=2100.0), 0.0, 1) == 0
