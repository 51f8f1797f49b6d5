"""What a space can hold at all, and how an illegal proposal is mended."""

import random
from typing import Any

import pytest

from domain.catalogue import catalogue
from domain.default_space import at_defaults, job_space
from domain.feasible import Feasible
from domain.job import Budget, JobSpec, Objective, ResolvedSource, Teacher, Values
from domain.recipe import SLOTS, Recipe
from domain.space import Choice, FloatRange, IntRange, Space


def source(backbone: str, kind: Any = "torchvision") -> ResolvedSource:
    return ResolvedSource(ref=f"{kind}:{backbone}", backbone=backbone, kind=kind, n_classes=1000)


def spec_over(sources: list[ResolvedSource], teacher: Teacher | None = None, **overrides: Any) -> JobSpec:
    space = job_space(
        "classification", sources, catalogue(), n_train=400, has_teacher=teacher is not None,
        overrides={path.replace("__", "."): value for path, value in overrides.items()},
    )  # fmt: skip
    return JobSpec(
        task="classification", sources=tuple(sources), teacher=teacher, space=space, budget=Budget(trials=10),
        objectives=(Objective(name="accuracy"),), n_folds=1,
    )  # fmt: skip


def drawn(space: Space, rng: random.Random) -> Values:
    """A recipe drawn at random, legal or not."""
    values: Values = dict(space.fixed)
    for dimension in space.dimensions:
        if dimension.active(values):
            match dimension.range:
                case Choice(options=options):
                    values[dimension.path] = rng.choice(options)
                case IntRange(low=low, high=high):
                    values[dimension.path] = rng.randint(low, high)
                case FloatRange(low=low, high=high):
                    values[dimension.path] = rng.uniform(low, high)
    return values


def every_part() -> JobSpec:
    """A job that names every part there is, and three networks of which none can take all of them."""
    names = {slot: ["none", *(p.name for p in catalogue().parts if p.slot == slot)] for slot in SLOTS}
    teacher = Teacher(kind="source", ref="torchvision:resnet34", source=source("resnet34"))
    return spec_over([source("resnet18"), source("mobilenet_v2"), source("resnet18", "scratch")], teacher, **names)


def test_a_proposal_is_mended_into_a_legal_one_of_the_same_space() -> None:
    spec, rng = every_part(), random.Random(7)
    feasible, n_mended = Feasible(spec, catalogue()), 0
    for _ in range(150):
        values = drawn(spec.space, rng)
        found = feasible.mended(values)
        assert found is not None
        assert spec.refusals(spec.recipe(found, seed=0), catalogue()) == []
        active = {d.path for d in spec.space.dimensions if d.active(found)}
        assert set(found) == active | set(spec.space.fixed)
        assert all(d.range.holds(found[d.path]) for d in spec.space.dimensions if d.path in active)
        if not spec.refusals(spec.recipe(values, seed=0), catalogue()):
            assert found == values, "what is legal stays as it is"
        else:
            n_mended += 1
            assert found["source"] == values["source"], "what comes first in the space is kept"
    assert n_mended > 50


def test_what_cannot_be_mended_is_said() -> None:
    spec = spec_over([source("resnet18", "scratch")], regularizer="l2_sp")
    assert Feasible(spec, catalogue()).mended(at_defaults(spec, spec.sources[0].ref)) is None


# Widths of the maps at the taps, by hand: resnet18 and resnet34 both 64, 64, 128, 256, 512; resnet50 from 256 to 2048.
@pytest.mark.parametrize(
    ("own", "teacher", "legal"),
    [("resnet18", "resnet34", True), ("resnet18", "resnet18", True), ("resnet18", "resnet50", False),
     ("mobilenet_v2", "resnet18", False), ("resnet50", "resnet101", True)],
)  # fmt: skip
def test_fsp_wants_a_teacher_of_its_own_widths_and_the_source_is_always_one(
    own: str, teacher: str, legal: bool
) -> None:
    by_source = Teacher(kind="source", ref=f"torchvision:{teacher}", source=source(teacher))
    recipe = Recipe(task="classification", source="scratch:x", backbone=teacher)
    by_job = Teacher(kind="job", ref="job_1", trial_id="tr_1", blob="b", recipe=recipe)
    for who in (by_source, by_job):
        for guide in ("teacher", "source"):
            spec = spec_over([source(own)], who, feature="fsp", feature__fsp__guide=guide)
            refused = spec.refusals(spec.recipe(at_defaults(spec, f"torchvision:{own}"), seed=0), catalogue())
            assert [r.code for r in refused] == ([] if legal or guide == "source" else ["guide_differs"])


@pytest.mark.parametrize("part", ["attention", "fitnet"])
def test_other_guides_may_have_any_widths(part: str) -> None:
    teacher = Teacher(kind="source", ref="torchvision:resnet50", source=source("resnet50"))
    spec = spec_over([source("mobilenet_v2")], teacher, feature=part, **{f"feature__{part}__guide": "teacher"})
    assert not spec.refusals(spec.recipe(at_defaults(spec, "torchvision:mobilenet_v2"), seed=0), catalogue())


def test_the_best_trial_may_come_from_any_source() -> None:
    best = Teacher(kind="best", ref="best")
    alike, unlike = [source("resnet18"), source("resnet34")], [source("resnet18"), source("mobilenet_v2")]
    for sources, legal in ((alike, True), (unlike, False)):
        spec = spec_over(sources, best, feature="fsp", feature__fsp__guide="teacher")
        refused = spec.refusals(spec.recipe(at_defaults(spec, "torchvision:resnet18"), seed=0), catalogue())
        assert (refused == []) is legal
