"""Every registered part: honest facts, trains, reproducible, resumable, and true to what its slot promises."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domain.catalogue import PartFacts, catalogue
from domain.lot import LotOrder, TeacherFiles
from domain.recipe import SLOTS, refusals
from domain.space import Choice
from domain.trial import TrialOutcome
from models.build import members
from models.facts import facts_of
from tests.toys import make_order, make_recipe, train, write_pack, write_source
from transfer import warm
from transfer.fit import Fit
from transfer.parts import FOLDERS, FUNCTIONS, every_part, load
from transfer.phase import Outcome, Plan
from transfer.step import Step, Weights

PARTS = {f"{p.slot}.{p.name}": p for p in every_part()}
NEEDS = {"start", "source_head", "source_data", "teacher", "taps", "conv", "batch_norm", "blocks"}
SAID_BEFORE_PARAMS = {"prepare": 1, "rebuild": 2, "phases": 1, "draw": 3, "loss": 1, "after_step": 4}
BACKBONE = "tiny_resnet"


@pytest.fixture(params=PARTS, name="part")
def _part(request: pytest.FixtureRequest) -> PartFacts:
    return PARTS[request.param]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("parts") / "pack")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("parts") / "source.safetensors", BACKBONE)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> TeacherFiles:
    path = tmp_path_factory.mktemp("parts") / "teacher.safetensors"
    write_source(path, "tiny_smallnet", n_classes=3)
    return TeacherFiles(weights=str(path), backbone="tiny_smallnet", head="linear", resolution=32)


def order_with(
    part: PartFacts,
    params: dict[str, Any],
    pack: Path,
    source: Path,
    teacher: TeacherFiles,
    scratch: Path,
    **given: Any,
) -> LotOrder:
    recipe = make_recipe(BACKBONE, **{"steps": 8, "batch_norm": "eval", part.slot: (part.name, params), **given})
    return make_order(recipe, pack, source, scratch, teacher=teacher if "teacher" in part.needs else None)


def result(order: LotOrder) -> tuple[TrialOutcome, dict[str, torch.Tensor], np.ndarray]:
    fit, _ = train(order)
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    with np.load(outcome.files["predictions"]) as saved:
        return outcome, load_file(outcome.files["weights"]), saved["logits"]


# --- facts


def test_every_slot_has_its_folder() -> None:
    assert set(FOLDERS) == set(SLOTS)
    assert {p.slot for p in PARTS.values()} == set(SLOTS)


def test_facts_are_honest(part: PartFacts) -> None:
    assert part.summary.endswith((".", ":")) or len(part.summary) > 20
    assert set(part.needs) <= NEEDS
    assert part.functions
    assert set(part.clashes) <= {*SLOTS, *PARTS}
    assert f"{part.slot}.{part.name}" not in part.clashes
    for name, range_ in part.space.items():
        assert range_.holds(range_.default), name
    assert catalogue().part(part.slot, part.name) == part, "run `make catalogue`"


def test_functions_take_what_they_are_given(part: PartFacts) -> None:
    """Positional arguments as `fit` passes them, then every param of SPACE, keyword-only and no other."""
    module = load(part.slot, part.name)
    for function in part.functions:
        signature = inspect.signature(getattr(module, function))
        positional = [p for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        keywords = {p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert len(positional) == SAID_BEFORE_PARAMS[function], function
        assert keywords == set(part.space), function
    public = {n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__}
    assert public & set(FUNCTIONS) == set(part.functions)


def test_it_is_legal_where_its_needs_are_met_and_refused_where_not(part: PartFacts) -> None:
    facts = catalogue().model_copy(update={"backbones": (facts_of(members()[BACKBONE]),)})
    recipe = make_recipe(BACKBONE, **{part.slot: (part.name, {})})
    assert refusals(recipe, NEEDS, facts) == []
    for need in set(part.needs) - set(facts.backbones[0].provides):
        assert [r.code for r in refusals(recipe, NEEDS - {need}, facts)] == ["part_needs"]


# --- training


def corners(part: PartFacts) -> Iterator[dict[str, Any]]:
    """Each param at the ends of its range, the others at their default."""
    for name, range_ in part.space.items():
        options = range_.options if isinstance(range_, Choice) else (range_.low, range_.high)
        yield from ({name: value} for value in options)


def test_the_loss_falls(part: PartFacts, pack: Path, source: Path, teacher: TeacherFiles, tmp_path: Path) -> None:
    if "phases" in part.functions and part.name == "linear_probe":
        outcome, _, _ = result(order_with(part, {}, pack, source, teacher, tmp_path))
        assert outcome.metrics["log_loss"] < np.log(3)
        return
    gentle = {"optimizer": {"inner_ratio": 0.1}, "data": {"augmentation": 0.0}}
    order = order_with(part, {}, pack, source, teacher, tmp_path, steps=40, **gentle)
    fit, reports = train(order)
    assert fit.outcome("tr_1").state == "COMPLETE", fit.outcome("tr_1").error
    totals = [sum(v for n, v in r.terms.items() if not n.startswith("val/")) for r in reports]
    assert np.mean(totals[-3:]) < totals[0]
    if "loss" in part.functions:
        assert part.name in reports[0].terms


def test_it_trains_at_the_ends_of_its_ranges(
    part: PartFacts, pack: Path, source: Path, teacher: TeacherFiles, tmp_path: Path
) -> None:
    for place, params in enumerate(corners(part)):
        outcome, _, _ = result(order_with(part, params, pack, source, teacher, tmp_path / str(place), steps=3))
        assert outcome.value is not None


def test_same_seed_same_bits_also_after_an_interruption(
    part: PartFacts, pack: Path, source: Path, teacher: TeacherFiles, tmp_path: Path
) -> None:
    def order(name: str) -> LotOrder:
        return order_with(part, {}, pack, source, teacher, tmp_path / name, steps=7)

    _, weights, logits = result(order("one"))
    warm.forget()
    _, again, other = result(order("two"))
    asked = 0

    def stopped(_: str) -> str:
        nonlocal asked
        asked += 1
        return "pause" if asked > 3 else "go"

    paused = Fit(order("three"), stopped=stopped)
    list(paused)
    if paused.outcome("tr_1").state == "PAUSED":  # a closed form is over before it can be
        paused.save(tmp_path / "point")
        trial = order("three").trials[0].model_copy(update={"resume": str(tmp_path / "point")})
        _, resumed, resumed_logits = result(order("three").model_copy(update={"trials": (trial,)}))
        assert all(torch.equal(weights[n], resumed[n]) for n in weights)
        assert np.array_equal(logits, resumed_logits)
    assert all(torch.equal(weights[n], again[n]) for n in weights)
    assert np.array_equal(logits, other)


def test_it_trains_under_autocast(
    part: PartFacts, pack: Path, source: Path, teacher: TeacherFiles, tmp_path: Path
) -> None:
    order = order_with(part, {}, pack, source, teacher, tmp_path)
    outcome, weights, _ = result(order.model_copy(update={"precision": "bfloat16"}))
    assert all(t.dtype == torch.float32 for n, t in weights.items() if not n.endswith("num_batches_tracked"))
    assert outcome.value is not None


def test_it_trains_across_folds(
    part: PartFacts, pack: Path, source: Path, teacher: TeacherFiles, tmp_path: Path
) -> None:
    order = order_with(part, {}, pack, source, teacher, tmp_path, steps=3).model_copy(update={"n_folds": 2})
    outcome, _, logits = result(order)
    assert len(logits) == 48
    assert outcome.value is not None


def test_the_checkpoint_is_a_plain_network(
    part: PartFacts, pack: Path, source: Path, teacher: TeacherFiles, tmp_path: Path
) -> None:
    _, weights, _ = result(order_with(part, {}, pack, source, teacher, tmp_path))
    expected = {n: t.shape for n, t in load_file(source).items() if not n.startswith("head")}
    assert {n: t.shape for n, t in weights.items() if not n.startswith("head")} == expected
    assert weights["head.weight"].shape[0] == 3


# --- what slots promise


@pytest.mark.parametrize("name", [p.name for p in PARTS.values() if p.slot == "regularizer" and "start" in p.needs])
def test_a_pull_to_the_start_is_nothing_there_and_something_elsewhere(name: str) -> None:
    module = load("regularizer", name)
    params = {key: range_.default for key, range_ in module.SPACE.items()}
    start = {"a.weight": torch.randn(6, 3, 2, 2), "b.weight": torch.randn(4, 6)}
    weights = {n: t.clone().requires_grad_() for n, t in start.items()}

    def never(*_: object) -> Any:
        raise AssertionError("a penalty looks at weights alone")

    def penalty() -> float:
        step = Step(
            inputs=torch.empty(0), targets=torch.empty(0), weights=Weights(weights, start), progress=0.0, seed=(0,),
            prepared={}, student=never, source=never, teacher=never, task_loss=never,  # type: ignore[arg-type]
        )  # fmt: skip
        value: float = module.loss(step, **params).item()
        return value

    assert penalty() == 0.0
    with torch.no_grad():
        weights["a.weight"] += 0.1
    assert penalty() > 0.0


@pytest.mark.parametrize("name", [p.name for p in PARTS.values() if p.slot == "schedule"])
def test_what_no_phase_trains_keeps_every_bit(
    name: str, pack: Path, source: Path, teacher: TeacherFiles, tmp_path: Path
) -> None:
    part = PARTS[f"schedule.{name}"]
    params = {"depth": 2} if "depth" in part.space else {}
    stages = facts_of(members()[BACKBONE]).stages
    plan = Plan(stages=stages, new=(), steps=8, n_train=36)
    trained: set[str] = set()
    defaults = {key: range_.default for key, range_ in part.space.items()}
    phases = load("schedule", name).phases(plan, **{**defaults, **params})
    phase, index = next(phases), 0
    while phase is not None:
        trained |= set(phase.trainable)
        try:
            phase, index = phases.send(Outcome(index, 1, 0.5, 1.0)), index + 1
        except StopIteration:
            phase = None
    _, weights, _ = result(order_with(part, params, pack, source, teacher, tmp_path, batch_norm="train"))
    for key, tensor in load_file(source).items():
        if not key.startswith("head") and key.partition(".")[0] not in trained:
            assert torch.equal(weights[key], tensor), key
    assert trained != {*stages, "head"}


def test_nothing_in_the_loop_knows_a_part_by_name() -> None:
    """The files that carry a trial out name no part."""
    names = {p.name for p in PARTS.values()}
    for file in ("fit", "fold", "loop", "setting", "bench", "prefix", "parts", "phase", "resume"):
        text = Path(inspect.getfile(load("regularizer", "l2"))).parents[1].joinpath(f"{file}.py").read_text("utf-8")
        found = {name for name in names if f'"{name}"' in text or f"import {name}" in text}
        assert not found, (file, found)
