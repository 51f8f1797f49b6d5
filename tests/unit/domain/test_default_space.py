from typing import Any

import pytest

from domain.catalogue import catalogue
from domain.default_space import anchors, at_defaults, fit_to_time, job_space, steps_rule
from domain.errors import Invalid
from domain.job import Budget, JobSpec, Objective, ResolvedSource
from domain.recipe import refusals
from domain.space import Choice, FloatRange, IntRange

SCRATCH = ResolvedSource(ref="scratch:smallnet", backbone="smallnet", kind="scratch")
RESNET = ResolvedSource(ref="torchvision:resnet18", backbone="resnet18", kind="torchvision")
MOBILENET = ResolvedSource(ref="torchvision:mobilenet_v2", backbone="mobilenet_v2", kind="torchvision")


def spec_of(*sources: ResolvedSource, n_train: int = 400, teacher: bool = False, **overrides: Any) -> JobSpec:
    space = job_space(
        "classification", sources, catalogue(), n_train=n_train, has_teacher=teacher,
        overrides={k.replace("__", "."): v for k, v in overrides.items()},
    )  # fmt: skip
    return JobSpec(
        task="classification", sources=sources, space=space, budget=Budget(trials=10),
        objectives=(Objective(name="accuracy"),), n_folds=1,
    )  # fmt: skip


def range_of(spec: JobSpec, path: str) -> Any:
    return next(d.range for d in spec.space.dimensions if d.path == path)


@pytest.mark.parametrize("backbone", [b.name for b in catalogue().backbones])
def test_defaults_and_anchors_of_every_backbone_are_legal(backbone: str) -> None:
    for kind in ("scratch", "registered"):
        source = ResolvedSource(ref=f"{kind}:{backbone}", backbone=backbone, kind=kind)  # type: ignore[arg-type]
        spec = spec_of(source)
        for values in [at_defaults(spec, source.ref), *(values for _, values in anchors(spec))]:
            assert refusals(spec.recipe(values, seed=0), spec.provided_by(source.ref), catalogue()) == []


def test_anchors_are_the_linear_probe_plain_fine_tuning_and_l2_sp_in_that_order() -> None:
    spec = spec_of(RESNET, head__kind="mlp")
    names = [name for name, _ in anchors(spec)]
    recipes = [spec.recipe(values, seed=0) for _, values in anchors(spec)]
    assert names == ["linear_probe", "fine_tuning", "l2_sp"]
    assert recipes[0].schedule is not None
    assert (recipes[0].schedule.name, recipes[0].head.kind, recipes[0].regularizer) == ("linear_probe", "linear", None)
    assert [r.regularizer.name for r in recipes[1:] if r.regularizer] == ["l2", "l2_sp"]
    assert [name for name, _ in anchors(spec_of(SCRATCH))] == ["scratch"]


def test_from_scratch_nothing_is_transferred() -> None:
    spec = spec_of(SCRATCH)
    assert not {"optimizer.inner_ratio", "regularizer.l2_sp.alpha"} & set(spec.space.paths)
    recipe = spec.recipe(at_defaults(spec, SCRATCH.ref), seed=0)
    assert recipe.optimizer.inner_ratio == 1.0
    assert recipe.regularizer is not None
    assert recipe.regularizer.name == "l2"


def test_inner_ratio_is_searched_for_the_transferred_sources_alone() -> None:
    scratch = ResolvedSource(ref="scratch:resnet18", backbone="resnet18", kind="scratch")
    spec = spec_of(scratch, RESNET)
    inner = next(d for d in spec.space.dimensions if d.path == "optimizer.inner_ratio")
    assert inner.active({"source": RESNET.ref})
    assert not inner.active({"source": scratch.ref})


def test_the_step_rule_follows_the_size_of_the_dataset() -> None:
    assert [steps_rule(n) for n in (50, 19_999, 20_000, 499_999, 500_000)] == [500, 500, 10_000, 10_000, 20_000]
    assert range_of(spec_of(RESNET), "steps") == IntRange(low=125, high=2000, log=True, default=500)


def test_freeze_depth_ends_at_the_shallowest_backbone() -> None:
    stages = {b.name: len(b.stages) for b in catalogue().backbones}
    depth = range_of(spec_of(RESNET, MOBILENET), "schedule.freeze.depth")
    assert depth.high == min(stages["resnet18"], stages["mobilenet_v2"])


def test_distillation_joins_the_space_with_a_teacher() -> None:
    assert "distillation" not in spec_of(RESNET).space.paths
    assert range_of(spec_of(RESNET, teacher=True), "distillation") == Choice(
        options=("none", "soft_targets"), default="none"
    )


def test_a_job_names_another_part_and_its_params_join() -> None:
    spec = spec_of(RESNET, feature="attention")
    assert any(p.startswith("feature.attention.") for p in spec.space.paths)
    assert spec.recipe(at_defaults(spec, RESNET.ref), seed=0).feature is not None


def test_a_job_opens_what_is_fixed_by_default_within_the_range_of_the_task() -> None:
    spec = spec_of(RESNET, optimizer__name="adamw", optimizer__stage_decay={"low": 0.7, "high": 0.9})
    assert spec.space.fixed["optimizer.name"] == "adamw"
    assert range_of(spec, "optimizer.stage_decay").low == 0.7
    assert isinstance(range_of(spec, "optimizer.lr_head"), FloatRange)
    assert range_of(spec, "optimizer.lr_head").high == 3e-3, "AdamW has learning rates of its own"


def test_batch_sizes_fit_the_training_items() -> None:
    assert max(range_of(spec_of(RESNET, n_train=40), "data.batch_size").options) == 32
    assert spec_of(RESNET, n_train=20).space.fixed["data.batch_size"] == 16


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"regularizer": "l3"}, "unknown_regularizer"),
        ({"distillation": "soft_target"}, "unknown_distillation"),
        ({"optimizer.lr_head": 100.0}, "bad_dimension"),
        ({"momentum": 0.9}, "unknown_dimension"),
        ({"data.resolution": 100}, "bad_dimension"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_what_can(overrides: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        job_space("classification", [RESNET], catalogue(), n_train=400, has_teacher=False, overrides=overrides)
    assert refused.value.code == code


def in_time(spec: JobSpec, wall_s: float | None) -> JobSpec:
    return spec.model_copy(update={"budget": Budget(trials=100, wall_s=wall_s)})


def test_a_budget_of_time_pays_for_eight_default_trials() -> None:
    spec = in_time(spec_of(RESNET), 800)
    assert fit_to_time(spec, s_per_trial=100) == spec
    steps = range_of(fit_to_time(spec, s_per_trial=400), "steps")
    assert (steps.low, steps.default, steps.high) == (31, 125, 500)
    assert range_of(fit_to_time(spec, s_per_trial=1e6), "steps").default == 10
    assert fit_to_time(in_time(spec, None), s_per_trial=1e6) == in_time(spec, None)


def test_steps_that_the_job_chose_are_left_alone() -> None:
    spec = in_time(spec_of(RESNET, steps={"high": 600}), 60).model_copy(update={"chosen": ("steps",)})
    assert fit_to_time(spec, s_per_trial=400) == spec


ALL_PARTS = [(p.slot, p.name) for p in catalogue().parts]
VIT = ResolvedSource(ref="torchvision:vit_b_16", backbone="vit_b_16", kind="torchvision")


@pytest.mark.parametrize(("slot", "name"), ALL_PARTS)
def test_a_job_that_names_a_part_and_nothing_else_has_a_legal_default(slot: str, name: str) -> None:
    """What cannot stand beside the part goes, and what it asks of the rest of the recipe is there."""
    part = catalogue().part(slot, name)
    source = VIT if "transformer" in part.needs else RESNET
    space = job_space(
        "classification", (source,), catalogue(), n_train=400, has_teacher=True, has_source_data=True,
        overrides={slot: name},
    )  # fmt: skip
    spec = JobSpec(
        task="classification", sources=(source,), space=space, budget=Budget(trials=10),
        objectives=(Objective(name="accuracy"),), n_folds=1,
    )  # fmt: skip
    recipe = spec.recipe(at_defaults(spec, source.ref), seed=0)
    offered = {"start", "source_head", "source_data", "teacher"}
    assert refusals(recipe, offered, catalogue()) == []
    assert recipe.parts[slot].name == name


def test_options_that_need_what_the_job_lacks_are_not_searched() -> None:
    both = spec_of(RESNET, teacher=True, feature="attention")
    assert set(range_of(both, "feature.attention.guide").options) == {"source", "teacher"}
    alone = spec_of(RESNET, feature="attention")
    assert at_defaults(alone, RESNET.ref)["feature.attention.guide"] == "source"
    with_teacher = spec_of(RESNET, feature="fitnet")
    assert at_defaults(with_teacher, RESNET.ref)["feature.fitnet.guide"] == "source"


def test_a_part_that_demands_a_batch_norm_mode_gets_it_and_a_contradiction_is_refused() -> None:
    assert at_defaults(spec_of(RESNET, surgery="stochnorm"), RESNET.ref)["batch_norm"] == "train"
    spec = spec_of(RESNET, surgery="stochnorm", batch_norm="eval")
    recipe = spec.recipe(at_defaults(spec, RESNET.ref), seed=0)
    (refusal,) = refusals(recipe, spec.provided_by(RESNET.ref), catalogue())
    assert refusal.code == "part_demands"
    assert "batch_norm" in refusal.detail
