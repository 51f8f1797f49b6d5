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
    absent = {"optimizer.inner_ratio", "regularizer.l2_sp.alpha", "schedule.freeze.depth", "batch_norm"}
    assert not absent & set(spec.space.paths)
    recipe = spec.recipe(at_defaults(spec, SCRATCH.ref), seed=0)
    assert recipe.optimizer.inner_ratio == 1.0
    assert recipe.regularizer is not None
    assert recipe.regularizer.name == "l2"


def test_inner_ratio_is_searched_for_the_transferred_sources_alone() -> None:
    scratch = ResolvedSource(ref="scratch:resnet18", backbone="resnet18", kind="scratch")
    spec = spec_of(scratch, RESNET)
    plain = {"schedule": "freeze"}
    for path in ("optimizer.inner_ratio", "batch_norm", "schedule.freeze.depth"):
        dimension = next(d for d in spec.space.dimensions if d.path == path)
        assert dimension.active({**plain, "source": RESNET.ref})
        assert not dimension.active({**plain, "source": scratch.ref})
    recipes = [spec.recipe(at_defaults(spec, s.ref), seed=0) for s in spec.sources]
    assert [r.batch_norm for r in recipes] == ["train", "eval"], "the statistics of nothing are no statistics"


# The twelve of the recommended space: backbone, method, two rates, momentum, two strengths, depth, steps and three of
# the data; and two more, whose best value is a property of the pictures.
TWELVE = {
    "source", "regularizer", "optimizer.lr_head", "optimizer.inner_ratio", "optimizer.momentum",
    "regularizer.l2_sp.beta", "regularizer.l2_sp.alpha", "schedule.freeze.depth", "steps", "data.resolution",
    "data.mixup_alpha", "data.batch_size",
}  # fmt: skip


def test_twelve_dimensions_are_searched_by_default_and_two_of_the_pictures() -> None:
    spec = spec_of(RESNET, MOBILENET)
    values = at_defaults(spec, RESNET.ref)
    free = {d.path for d in spec.space.dimensions if d.active(values) and len(getattr(d.range, "options", "ab")) > 1}
    assert free == TWELVE | {"data.augmentation", "data.flip"}


def test_a_setting_is_searched_only_beside_schedules_that_heed_it() -> None:
    spec = spec_of(RESNET, schedule=["freeze", "linear_probe", "bit_hyperrule"])
    active = {
        name: {d.path for d in spec.space.dimensions if d.active({**at_defaults(spec, RESNET.ref), "schedule": name})}
        for name in ("freeze", "linear_probe", "bit_hyperrule")
    }
    rates = {"optimizer.lr_head", "optimizer.inner_ratio", "optimizer.momentum", "data.mixup_alpha"}
    assert rates | {"steps", "data.batch_size"} <= active["freeze"]
    assert not rates & active["bit_hyperrule"]
    assert {"steps", "data.batch_size"} <= active["bit_hyperrule"]
    assert "data.resolution" in active["linear_probe"]
    assert not (rates | {"steps", "data.batch_size", "data.flip"}) & active["linear_probe"]
    alone = spec_of(RESNET, schedule="linear_probe")
    assert "steps" in alone.space.fixed, "nothing to search, and a value for the anchors"


def test_momentum_is_of_sgd_alone() -> None:
    both = spec_of(RESNET, optimizer__name=["sgd", "adamw"])
    momentum = next(d for d in both.space.dimensions if d.path == "optimizer.momentum")
    assert [momentum.active({"optimizer.name": name}) for name in ("sgd", "adamw")] == [True, False]
    rate = range_of(both, "optimizer.lr_head")
    assert (rate.low, rate.high) == (1e-5, 1e-1)
    assert "optimizer.momentum" not in {d.path for d in spec_of(RESNET, optimizer__name="adamw").space.dimensions}


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("optimizer.lr_head", {"low": 1e-5, "high": 0.5}), ("optimizer.momentum", {"low": 0.5, "high": 0.99}),
        ("data.batch_size", [8, 256]), ("data.resolution", [256, 288]), ("steps", {"low": 10, "high": 20_000}),
        ("data.mixup_alpha", [0, 0.4]), ("optimizer.inner_ratio", [0, 1, 3]), ("data.label_smoothing", 0.05),
        ("batch_norm", ["train", "eval", "frozen"]), ("head.kind", "mlp"), ("optimizer.grad_clip", {"high": 5}),
        ("regularizer", ["l2", "l1_sp", "gl_sp"]), ("regularizer.l2_sp.scope", "all"), ("averaging", ["none", "swa"]),
    ],
)  # fmt: skip
def test_a_job_goes_beyond_the_default_space_wherever_that_is_legal(path: str, wanted: Any) -> None:
    spec = spec_of(RESNET, **{path.replace(".", "__"): wanted})
    values = at_defaults(spec, RESNET.ref)
    assert spec.refusals(spec.recipe(values, seed=0), catalogue()) == []
    if isinstance(wanted, dict):
        assert range_of(spec, path).high == wanted["high"]
    elif isinstance(wanted, list):
        assert list(range_of(spec, path).options) == wanted
    else:
        assert values[path] == wanted


@pytest.mark.parametrize(
    ("overrides", "code", "said"),
    [
        ({"optimizer__lr_head": {"high": 50}}, "bad_dimension", "<= high <= 10"),
        ({"data__resolution": 250}, "bad_dimension", "224, 256"),
        ({"data__batch_size": 4096}, "bad_dimension", "from 2 to 1024"),
        ({"schedule__freeze__depth": 6}, "bad_dimension", "from 0 to 5"),
        ({"regularizer__l2_sp__alpha": 3}, "bad_dimension", "from 0.0001 to 1"),
        ({"regularizer__l1_sp__alpha": 1e-3}, "part_not_searched", "regularizer=l1_sp"),
        ({"regularizer": {"low": 1}}, "bad_dimension", "the name of a part"),
    ],
)  # fmt: skip
def test_beyond_what_is_legal_it_is_told_where_that_ends(overrides: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        spec_of(RESNET, **overrides)
    assert refused.value.code == code
    assert said in refused.value.detail


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


def test_a_budget_of_time_pays_for_three_default_trials() -> None:
    spec = in_time(spec_of(RESNET), 300)
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
