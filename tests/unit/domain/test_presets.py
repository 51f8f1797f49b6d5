"""What each preset is worth, as data."""

import pytest

from domain.catalogue import catalogue
from domain.default_space import at_defaults, job_space, low_resolution
from domain.job import Budget, Confirm, Fidelity, JobSpec, Objective, ResolvedSource
from domain.presets import PRESETS
from domain.space import Choice

RESNET = ResolvedSource(ref="torchvision:resnet18", backbone="resnet18", kind="torchvision")
SMALL = ResolvedSource(ref="scratch:smallnet", backbone="smallnet", kind="scratch")


def spec_of(preset: str, source: ResolvedSource = RESNET, **overrides: object) -> JobSpec:
    space = job_space(
        "classification", (source,), catalogue(), n_train=400, has_teacher=False, preset=preset,
        overrides={path.replace("__", "."): value for path, value in overrides.items()},
    )  # fmt: skip
    return JobSpec(
        task="classification", sources=(source,), space=space, budget=Budget(trials=10),
        objectives=(Objective(name="accuracy"),), n_folds=1,
    )  # fmt: skip


def searched(preset: str) -> set[str]:
    """The dimensions of a recipe at its defaults that have more than one value."""
    spec = spec_of(preset)
    values = at_defaults(spec, RESNET.ref)
    free = [d for d in spec.space.dimensions if d.active(values)]
    return {d.path for d in free if not isinstance(d.range, Choice) or len(d.range.options) > 1}


def test_each_is_worth_more_than_the_one_before() -> None:
    fast, balanced, best = (PRESETS[name] for name in ("fast", "balanced", "best"))
    assert [p.budget.trials for p in (fast, balanced, best)] == [12, 30, 100]
    assert [p.budget.wall_s for p in (fast, balanced, best)] == [900, 7200, 43_200]
    assert searched("fast") < searched("balanced") < searched("best")
    assert len(searched("fast")) == 8
    steps = [at_defaults(spec_of(name), RESNET.ref)["steps"] for name in ("fast", "balanced", "best")]
    assert steps == [125, 500, 1000], "500 steps are the rule below 20 000 items"


def test_how_far_the_answer_is_checked() -> None:
    assert (PRESETS["fast"].n_folds, PRESETS["balanced"].n_folds, PRESETS["best"].n_folds) == (1, None, 3)
    assert PRESETS["best"].confirm == Confirm(top=3, seeds=2)
    assert [PRESETS[name].combine for name in ("fast", "balanced", "best")] == [False, True, True]


@pytest.mark.parametrize("name", list(PRESETS))
def test_networks_are_published_and_share_a_resolution(name: str) -> None:
    published = {f"torchvision:{b.name}" for b in catalogue().backbones if b.weights}
    assert set(PRESETS[name].sources) <= published
    backbones = [catalogue().backbone(ref.partition(":")[2]) for ref in PRESETS[name].sources]
    assert set.intersection(*(set(b.resolutions) for b in backbones))
    known = set(catalogue().task("classification").space) | {"data.resolution"}
    assert set(PRESETS[name].searched) <= known


def test_what_is_tried_cheaply_first_is_below_what_is_trained_in_full() -> None:
    assert PRESETS["fast"].low_resolution
    assert low_resolution(spec_of("fast"), catalogue()) == Fidelity(dimension="resolution", low=96)
    assert low_resolution(spec_of("fast", data__resolution=96), catalogue()) is None
    assert low_resolution(spec_of("fast", SMALL), catalogue()) is None, "32 pixels are few enough"
