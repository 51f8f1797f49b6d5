"""Every registered part: honest facts, trains, reproducible, resumable, and true to what its slot promises."""

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domain.catalogue import PartFacts, catalogue
from domain.lot import LotOrder, TeacherFiles
from domain.recipe import SLOTS, refusals
from domain.space import Choice, Value
from domain.trial import TrialOutcome
from models.build import members
from models.facts import facts_of
from tests.toys import demanded, go, make_order, make_recipe, train, write_pack, write_source
from transfer import warm
from transfer.bench import Bench
from transfer.checkpoint import open_checkpoint
from transfer.fit import Fit
from transfer.parts import FOLDERS, FUNCTIONS, every_part, load
from transfer.phase import Outcome, covers
from transfer.setting import Setting
from transfer.step import Step, Weights

PARTS = {f"{p.slot}.{p.name}": p for p in every_part()}
OFFERED = {"start", "source_head", "source_data", "teacher"}
NEEDS = OFFERED | {"taps", "conv", "conv3x3", "batch_norm", "blocks", "transformer", "double_backward"}
# Penalties of a distance from the start alone; those that prepare something first have tests of their own.
DISTANCES = [
    p.name for p in PARTS.values() if p.slot == "regularizer" and "start" in p.needs and "prepare" not in p.functions
]
SAID_BEFORE_PARAMS = {"prepare": 1, "rebuild": 2, "phases": 1, "draw": 3, "loss": 1, "after_step": 4}


@pytest.fixture(params=PARTS, name="part")
def _part(request: pytest.FixtureRequest) -> PartFacts:
    return PARTS[request.param]


class Bed(NamedTuple):
    """What a part is tried on: a pack, a source of a backbone that has what the part needs, a teacher, source data."""

    backbone: str
    pack: Path
    source: Path
    teacher: TeacherFiles
    source_pack: Path

    def order(self, part: PartFacts, params: dict[str, Any], scratch: Path, **given: Any) -> LotOrder:
        slots = {part.slot: (part.name, params)}
        recipe = make_recipe(self.backbone, **{"steps": 8, **demanded(part), **slots, **given})
        needs = part.needs_of(params)
        return make_order(
            recipe, self.pack, self.source, scratch, teacher=self.teacher if "teacher" in needs else None,
            source_pack=self.source_pack if "source_data" in needs else None,
        )  # fmt: skip


@pytest.fixture(scope="module")
def beds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bed]:
    folder = tmp_path_factory.mktemp("parts")
    pack, source_pack = write_pack(folder / "pack"), write_pack(folder / "source_pack", n_classes=4, seed=5)

    @cache
    def made(backbone: str) -> Bed:
        source = write_source(folder / f"{backbone}.safetensors", backbone)
        taught = write_source(folder / f"{backbone}-teacher.safetensors", backbone, n_classes=3, seed=12)
        teacher = TeacherFiles(weights=str(taught), recipe=make_recipe(backbone))
        return Bed(backbone, pack, source, teacher, source_pack)

    return made


@pytest.fixture
def bed(part: PartFacts, beds: Callable[[str], Bed]) -> Bed:
    return beds(backbone_for(part))


def backbone_for(part: PartFacts) -> str:
    return "tiny_vit" if "transformer" in part.needs else "tiny_resnet"


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
    backbone = backbone_for(part)
    facts = catalogue().model_copy(update={"backbones": (facts_of(members()[backbone]),)})
    asked = [dict[str, Value](), *({param: value} for param, table in part.needs_by.items() for value in table)]
    for params in asked:
        recipe = make_recipe(backbone, **demanded(part), **{part.slot: (part.name, params)})
        assert refusals(recipe, OFFERED, facts) == []
        for need in set(part.needs_of(params)) & OFFERED:
            assert "part_needs" in [r.code for r in refusals(recipe, OFFERED - {need}, facts)]


# --- training


def corners(part: PartFacts) -> Iterator[dict[str, Any]]:
    """Each param at the ends of its range, the others at their default."""
    for name, range_ in part.space.items():
        options = range_.options if isinstance(range_, Choice) else (range_.low, range_.high)
        yield from ({name: value} for value in options)


def test_the_loss_falls(part: PartFacts, bed: Bed, tmp_path: Path) -> None:
    gentle = {"optimizer": {"inner_ratio": 0.1}, "data": {"augmentation": 0.0}}
    fit, reports = train(bed.order(part, {}, tmp_path, steps=40, **gentle))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    if "phases" in part.functions:  # their losses are not the same from phase to phase
        assert outcome.metrics["log_loss"] < np.log(3)
    else:
        totals = [sum(v for n, v in r.terms.items() if not n.startswith("val/")) for r in reports]
        assert np.mean(totals[-3:]) < totals[0]
    if "loss" in part.functions:
        assert any(part.name in r.terms for r in reports)


def test_it_trains_at_the_ends_of_its_ranges(part: PartFacts, bed: Bed, tmp_path: Path) -> None:
    for place, params in enumerate(corners(part)):
        outcome, _, _ = result(bed.order(part, params, tmp_path / str(place), steps=3))
        assert outcome.value is not None


def test_same_seed_same_bits_also_after_an_interruption(part: PartFacts, bed: Bed, tmp_path: Path) -> None:
    """Paused at the first question, at the third, wherever that falls, and at the one after the middle of all."""

    def order(name: str) -> LotOrder:
        return bed.order(part, {}, tmp_path / name, steps=7)

    asked = 0
    pause_at = 0

    def stopped(_: str) -> str:
        nonlocal asked
        asked += 1
        return "pause" if 0 < pause_at <= asked else "go"

    counted = Fit(order("one"), stopped=stopped)
    list(counted)
    n_asked, outcome = asked, counted.outcome("tr_1")
    weights, logits = load_file(outcome.files["weights"]), np.load(outcome.files["predictions"])["logits"]
    warm.forget()
    _, again, other = result(order("two"))
    assert all(torch.equal(weights[n], again[n]) for n in weights)
    assert np.array_equal(logits, other)
    for pause_at in {1, 3, n_asked // 2 + 1}:
        asked = 0
        warm.forget()
        paused = Fit(order("three"), stopped=stopped)
        list(paused)
        if paused.outcome("tr_1").state == "PAUSED":  # a closed form is over before it can be
            paused.save(tmp_path / f"point-{pause_at}")
            trial = order("three").trials[0].model_copy(update={"resume": str(tmp_path / f"point-{pause_at}")})
            resumed, after, resumed_logits = result(order("three").model_copy(update={"trials": (trial,)}))
            assert resumed.facts["resumed"]
            assert all(torch.equal(weights[n], after[n]) for n in weights)
            assert np.array_equal(logits, resumed_logits)


def test_it_trains_under_autocast(part: PartFacts, bed: Bed, tmp_path: Path) -> None:
    order = bed.order(part, {}, tmp_path)
    outcome, weights, _ = result(order.model_copy(update={"precision": "bfloat16"}))
    assert all(t.dtype == torch.float32 for n, t in weights.items() if not n.endswith("num_batches_tracked"))
    assert outcome.value is not None


def test_it_trains_across_folds(part: PartFacts, bed: Bed, tmp_path: Path) -> None:
    order = bed.order(part, {}, tmp_path, steps=3).model_copy(update={"n_folds": 2})
    outcome, _, logits = result(order)
    assert len(logits) == 48
    assert outcome.value is not None


def test_the_checkpoint_is_the_network_that_was_ranked(part: PartFacts, bed: Bed, tmp_path: Path) -> None:
    """Rebuilt from recipe and weights alone, it says on val what the trial said; what trains only is not in it."""
    order = bed.order(part, {}, tmp_path)
    outcome, weights, logits = result(order)
    trial = order.trials[0]
    network = open_checkpoint(trial.recipe, Path(outcome.files["weights"]), 3)
    setting = Setting(order, trial, go)
    with torch.no_grad():
        said = network(setting.problem.evaluation_inputs(setting.items(0)[1]))
    np.testing.assert_allclose(said.numpy(), logits, rtol=1e-4, atol=1e-4)
    plain = all(n in load_file(bed.source) for n in weights)
    assert plain != part.adds_weights
    if plain:
        expected = {n: t.shape for n, t in load_file(bed.source).items() if not n.startswith("head")}
        assert {n: t.shape for n, t in weights.items() if not n.startswith("head")} == expected
        assert weights["head.weight"].shape[0] == 3


# --- what slots promise


@pytest.mark.parametrize("name", DISTANCES)
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
            prepared={}, net=never, look=never, source=never, teacher=never, task_loss=never,  # type: ignore[arg-type]
            student=never,  # type: ignore[arg-type]
        )  # fmt: skip
        value: float = module.loss(step, **params).item()
        return value

    assert penalty() == 0.0
    with torch.no_grad():
        weights["a.weight"] += 0.1
    assert penalty() > 0.0


@pytest.mark.parametrize("name", [p.name for p in PARTS.values() if p.slot == "schedule"])
def test_what_no_phase_trains_keeps_every_bit(name: str, beds: Callable[[str], Bed], tmp_path: Path) -> None:
    part, bed = PARTS[f"schedule.{name}"], beds("tiny_resnet")
    params: dict[str, Value] = {"depth": 2} if "depth" in part.space else {}
    order = bed.order(part, params, tmp_path, batch_norm="train")
    setting = Setting(order, order.trials[0], go)
    phases = setting.parts[0].call("phases", Bench(setting, 0).plan)
    trained: tuple[str, ...] = ()
    phase, index = next(phases), 0
    while phase is not None:
        trained += phase.trainable
        try:
            phase, index = phases.send(Outcome(index, 1, 0.5, 1.0)), index + 1
        except StopIteration:
            phase = None
    _, weights, _ = result(order)
    for key, tensor in load_file(bed.source).items():
        if not key.startswith("head") and not covers(trained, key):
            assert torch.equal(weights[key], tensor), key


def test_nothing_in_the_loop_knows_a_part_by_name() -> None:
    """The files that carry a trial out name no part."""
    names = {p.name for p in PARTS.values()}
    for file in ("fit", "fold", "loop", "setting", "bench", "prefix", "parts", "phase", "resume", "checkpoint"):
        text = Path(inspect.getfile(load("regularizer", "l2"))).parents[1].joinpath(f"{file}.py").read_text("utf-8")
        found = {name for name in names if f'"{name}"' in text or f"import {name}" in text}
        assert not found, (file, found)
