"""From what the probe measured to what the job will take, or to why it cannot be done."""

from typing import Any

import pytest

from domain.default_space import at_defaults
from domain.errors import GraftError
from domain.estimate import batch_sizes
from domain.job import Budget, Confirm, JobSpec
from tests.unit.worker.conftest import SOURCE, make_spec
from worker.forecast import Counts, Forecast, Machine, fits, forecast, smaller_batches

COUNTS = Counts(train=300, val=100, test=100)
GB = 10**9
FACTS = {"device": "cpu", "device_name": "a machine", "precision": "float32"}


def machine(memory_bytes: int = 100 * GB, free_bytes: int = 1000 * GB) -> Machine:
    return Machine(FACTS | {"memory_bytes": memory_bytes}, 1, free_bytes)


def probed(**changes: Any) -> dict[str, Any]:
    """A step of 0.1 s, an item in 10 ms, an export of 4 s; 2 GB at a batch of 32, 1 GB of them there before."""
    trial = {"source": SOURCE.ref, "s_per_step": 0.1, "prepare_s": 0.0, "base_bytes": GB, "peak_bytes": 2 * GB}
    found = {"trials": [trial], "s_per_item": [0.01], "weights_bytes": [45_000_000]}
    return found | {"export_s": 4.0, "s_per_item_exported": 0.01} | changes


def foretold(spec: JobSpec, on: Machine | None = None, **changes: Any) -> Forecast:
    return forecast(spec, ["probe-0"], probed(**changes), COUNTS, on or machine())


def test_seconds_of_a_trial_of_the_finish_and_of_the_job() -> None:
    spec = make_spec(combine=False, overrides={"steps": 100})
    told = foretold(spec).estimate
    assert told["s_per_trial"] == pytest.approx(10 + (4 + 2) * 100 * 0.01)  # two looks at rungs
    assert told["first_value_s"] == pytest.approx(16 / 4)
    assert told["linear_probe_s"] == pytest.approx(400 * 0.01)
    # The winner and three anchors on 100 items: 4 s; export 4 s; 256 items by both: 5.12 s.
    assert told["finish_s"] == pytest.approx(3 + 1.25 * (4 + 4 + 5.12))
    assert told["job_s"] == pytest.approx(6 * 16 + told["finish_s"])
    assert told["memory_bytes"] == 2 * GB
    assert 0.5 * GB < told["disk_bytes"] < 20 * GB


def test_little_time_narrows_the_steps_and_leaves_combinations_out() -> None:
    spec = make_spec(budget=Budget(wall_s=60.0), keep_top=3)
    found = foretold(spec)
    left_s = 60 - found.estimate["finish_s"]
    assert found.estimate["s_per_trial"] < left_s / 2
    assert at_defaults(found.spec, SOURCE.ref)["steps"] < at_defaults(spec, SOURCE.ref)["steps"]
    assert not found.spec.combine
    assert [note.split()[0] for note in found.notes] == ["no", "steps"]
    plenty = foretold(make_spec(budget=Budget(wall_s=7200.0)))
    assert plenty.spec.combine
    assert plenty.notes == ()


def test_too_little_time_for_one_result_is_refused_with_the_least_that_works() -> None:
    with pytest.raises(GraftError, match="give at least 24 s") as caught:  # 4 s of linear probe, 19.4 s of finish
        foretold(make_spec(budget=Budget(wall_s=15.0), combine=False))
    assert caught.value.code == "budget_too_small"
    assert foretold(make_spec(budget=Budget(wall_s=24.0), combine=False)).estimate["finish_s"] < 20


def test_disk_that_is_not_there_is_refused() -> None:
    with pytest.raises(GraftError, match="GB are free") as caught:
        foretold(make_spec(), machine(free_bytes=10_000_000))
    assert caught.value.code == "disk_full"


def test_resume_points_of_trials_that_rest_and_weights_of_repeats_take_disk() -> None:
    """45 MB of weights, six trials: four copies of each that may rest, and those of two recipes with three seeds."""
    spec = make_spec(pruner="none", confirm=None)
    plain = foretold(spec).estimate["disk_bytes"]
    for pruner, copies in {"median": 0, "halving": 6 * 4, "hyperband": 6 * 4}.items():
        told = foretold(spec.model_copy(update={"pruner": pruner})).estimate["disk_bytes"]
        assert told - plain == copies * 45_000_000, pruner
    repeated = foretold(spec.model_copy(update={"confirm": Confirm(top=2, seeds=2)})).estimate["disk_bytes"]
    assert repeated - plain == 2 * 3 * 45_000_000


def test_batches_that_will_not_fit_are_left_out() -> None:
    found = foretold(make_spec(), machine(memory_bytes=4 * GB))  # 64 takes 3 GB, 128 takes 5 GB
    assert batch_sizes(found.spec) == (16, 32, 64)
    assert "data.batch_size 128" in found.notes[0]
    assert batch_sizes(foretold(make_spec()).spec) == (16, 32, 64, 128)


def test_smaller_and_smaller_batches_are_tried_until_there_is_none() -> None:
    small = machine(memory_bytes=GB)
    assert not fits(probed(), small)
    spec = smaller_batches(make_spec(), small)
    assert batch_sizes(spec) == (16,)
    with pytest.raises(GraftError, match=r"data\.batch_size 16 needs more than the 1\.0 GB of memory on cpu") as caught:
        smaller_batches(spec, small)
    assert caught.value.code == "out_of_memory"
