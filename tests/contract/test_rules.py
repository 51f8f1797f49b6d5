"""The rules that hold for every method: how losses are normalised, what penalties cover, and who stays as it is."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domain.catalogue import PartFacts
from domain.lot import LotOrder, TeacherFiles
from tests.toys import go, make_order, make_recipe, train, write_pack, write_source
from transfer.bench import Bench
from transfer.loop import Loop
from transfer.parts import bind, every_part
from transfer.phase import Phase
from transfer.setting import Setting, onlooker

PARTS = {f"{p.slot}.{p.name}": p for p in every_part()}
PULLS = [name for name, p in PARTS.items() if p.slot == "regularizer" and "start" in p.needs]
SCOPED = [name for name, p in PARTS.items() if p.slot == "regularizer" and "scope" in p.space]
DECOUPLED = [n for n in SCOPED if "after_step" in PARTS[n].functions and "alpha" in PARTS[n].space]
LOOKERS = [name for name, p in PARTS.items() if p.slot in ("feature", "distillation") and "loss" in p.functions]
BACKBONE = "tiny_resnet"


class Workshop:
    """A pack, a source, a teacher; loops opened over any recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pack = write_pack(folder / "pack")
        self.source_pack = write_pack(folder / "source_pack", n_classes=4, seed=5)
        self.source = write_source(folder / "source.safetensors", BACKBONE)
        taught = write_source(folder / "teacher.safetensors", BACKBONE, n_classes=3, seed=12)
        self.teacher = TeacherFiles(weights=str(taught), recipe=make_recipe(BACKBONE))

    def order(self, scratch: Path | None = None, pack: Path | None = None, **given: Any) -> LotOrder:
        recipe = make_recipe(BACKBONE, **{"steps": 4, "batch_norm": "eval", **given})
        return make_order(
            recipe, pack or self.pack, self.source, scratch or self.folder, teacher=self.teacher,
            source_pack=self.source_pack,
        )  # fmt: skip

    def loop(self, precision: str = "float32", **given: Any) -> Loop:
        order = self.order(**given).model_copy(update={"precision": precision})
        bench = Bench(Setting(order, order.trials[0], go), 0)
        return Loop(bench, Phase(trainable=bench.plan.everything), 0, 4)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("rules"))


def slots(name: str, **params: Any) -> dict[str, Any]:
    part: PartFacts = PARTS[name]
    return {part.slot: (part.name, params)}


def terms(loop: Loop) -> dict[str, float]:
    loop._differentiate()
    return loop.means()


# --- 1: normalisation


def test_the_data_loss_is_a_mean_and_a_penalty_a_plain_sum(workshop: Workshop) -> None:
    """Twice the batch: the mean over items, and the very same penalty."""
    given = slots("regularizer.l2", alpha=1e-3) | {"data": {"augmentation": 0.0, "flip": False}}
    large = workshop.loop(**given)
    found = terms(large)
    size = large.recipe.data.batch_size
    halves = []
    for part in (0, 1):
        half = workshop.loop(**given)
        half._drawn = half._drawn._replace(items=half._drawn.items[part * size // 2 :][: size // 2])
        halves.append(terms(half))
    assert found["task"] == pytest.approx(np.mean([h["task"] for h in halves]), rel=1e-5)
    assert {h["l2"] for h in halves} == {found["l2"]}
    kernels = [w for n, w in large.weights.items() if w.ndim > 1 and n in large.bench.start]
    assert found["l2"] > 1e-3 / 2 * sum(float(w.detach().square().sum()) for w in kernels)


# --- 2: which tensors


@pytest.mark.parametrize("name", SCOPED)
def test_a_scope_says_which_tensors_feel_the_penalty(name: str, workshop: Workshop) -> None:
    """Kernels: weights of convolutions and linear layers alone. All: biases and the affine pair as well. No buffers."""
    for scope in ("kernels", "all"):
        params = {"scope": scope} | ({"proximal": False} if "proximal" in PARTS[name].space else {})
        loop = workshop.loop(**slots(name, **params))
        with torch.no_grad():
            for weight in loop.weights.values():
                weight += 0.1
        part = bind("regularizer", workshop_part(name, params))
        loss = part.call("loss", loop._step())
        names = list(loop.weights)
        grads = torch.autograd.grad(loss, [loop.weights[n] for n in names], allow_unused=True)
        felt = {n for n, g in zip(names, grads, strict=True) if g is not None and bool(g.abs().sum() > 0)}
        kernels = {n for n in names if n.endswith("weight") and loop.weights[n].ndim >= 2}
        assert felt <= (kernels if scope == "kernels" else set(names))
        assert felt >= kernels - {n for n in kernels if n not in felt and "fisher" in name}
        if scope == "all" and "fisher" not in name:
            assert felt == set(names)


def workshop_part(name: str, params: dict[str, Any]) -> Any:
    recipe = make_recipe(BACKBONE, **slots(name, **params))
    return recipe.parts[PARTS[name].slot]


# --- 3: optimizers


@pytest.mark.parametrize("name", DECOUPLED)
def test_under_adamw_the_penalty_acts_beside_the_update(name: str, workshop: Workshop) -> None:
    """Adam rescales gradients: a penalty that went through the loss would lose its strength on the way."""
    adamw = {"optimizer": {"name": "adamw", "lr_head": 1e-3}}
    loop = workshop.loop(**slots(name), **adamw)
    assert terms(loop).get(PARTS[name].name, 0.0) == 0.0
    strong, bare = (
        workshop.loop(**given, **adamw) for given in (slots(name, alpha=PARTS[name].space["alpha"].high), {})
    )  # type: ignore[union-attr]
    for each in (strong, bare):
        with torch.no_grad():
            for weight in each.weights.values():
                weight += 0.1
        each._train_step(0.0)
    moved = [n for n in strong.weights if not torch.equal(strong.weights[n], bare.weights[n])]
    assert moved, "the penalty does nothing under AdamW"


# --- 4: the start


@pytest.mark.parametrize("name", PULLS)
def test_the_start_is_a_clone_that_never_moves(name: str, workshop: Workshop) -> None:
    """No penalty at step 0 but that of the new weights, some after one step; w0 as it was."""
    loop = workshop.loop(**slots(name), optimizer={"warmup_frac": 0.0})
    start = {n: w.clone() for n, w in loop.bench.start.items()}
    part = bind("regularizer", workshop_part(name, {"proximal": False} if "proximal" in PARTS[name].space else {}))

    def of_the_transferred() -> float:
        """The penalty with the new weights at zero."""
        kept = {n: w.detach().clone() for n, w in loop.weights.items() if n not in start}
        with torch.no_grad():
            for n in kept:
                loop.weights[n].zero_()
            found: float = part.call("loss", loop._step()).item()
            for n, weight in kept.items():
                loop.weights[n].copy_(weight)
        return found

    before = of_the_transferred()
    loop._train_step(0.0)
    after = of_the_transferred()
    if name == "regularizer.filter_patterns":  # a likelihood: never zero, least unlikely where it was fitted
        assert after != before
    else:
        assert before == pytest.approx(0.0, abs=1e-5)
        assert after > before
    assert all(torch.equal(start[n], w) for n, w in loop.bench.start.items())
    assert all(w.data_ptr() != loop.bench.start[n].data_ptr() for n, w in loop.weights.items() if n in start)


# --- 5: freezing


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_frozen_stages_keep_weights_and_statistics_bit_for_bit(depth: int, workshop: Workshop, tmp_path: Path) -> None:
    order = workshop.order(
        tmp_path, schedule=("freeze", {"depth": depth}), batch_norm="train", regularizer=("l2", {"scope": "all"})
    )
    fit, _ = train(order)
    weights, source = load_file(fit.outcome("tr_1").files["weights"]), load_file(workshop.source)
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    for name, tensor in weights.items():
        frozen = name.partition(".")[0] in stages[:depth]
        if frozen:
            assert torch.equal(tensor, source[name]), name
        elif name.endswith(("running_mean", "conv1.weight")) and "head" not in name:
            assert not torch.equal(tensor, source[name]), name


# --- 6: onlookers


@pytest.mark.parametrize("name", LOOKERS)
def test_source_and_teacher_stay_in_eval_mode_and_without_gradient(name: str, workshop: Workshop) -> None:
    loop = workshop.loop(batch_norm="train", **{k: v for k, v in slots(name).items() if k != "batch_norm"})
    bench = loop.bench
    bench.keep_as_teacher()
    watched = [bench.setting.source, *bench.setting.teachers, bench.previous]
    before = [{n: t.clone() for n, t in net.state_dict().items()} for net in watched if net is not None]
    loop.net.train()
    loop.trainee.train_mode()
    for _ in range(2):
        loop._train_step(0.0)
    for net, state in zip(watched, before, strict=True):
        assert net is not None
        assert not any(module.training for module in net.modules())
        assert not any(weight.requires_grad or weight.grad is not None for weight in net.parameters())
        assert all(torch.equal(state[n], t) for n, t in net.state_dict().items())
        assert all(module is not loop.net for module in net.modules())
        assert all(module is not net for module in loop.net.modules())


# --- 7: divergences, hooks, precision


def test_no_hook_outlives_a_look(workshop: Workshop) -> None:
    loop = workshop.loop()
    for _ in range(2):
        seen = loop.net.look(torch.randn(2, 3, 32, 32), convs=True)
    assert set(seen.convs) == set(loop.net.conv_taps)
    assert not any(module._forward_hooks for module in loop.net.modules())


@pytest.mark.parametrize("name", [n for n, p in PARTS.items() if p.slot in ("regularizer", "feature", "distillation")])
def test_losses_of_parts_are_float32_under_autocast(name: str, workshop: Workshop) -> None:
    loop = workshop.loop("bfloat16", **slots(name))
    part = next(p for p in loop.bench.parts if p.key == name)
    if not part.says("loss"):
        pytest.skip("it has no loss of its own")
    if part.says("phases"):
        loop.bench.keep_as_teacher()
    with loop.setting.autocast():
        assert part.call("loss", loop._step()).dtype == torch.float32


@pytest.mark.parametrize("name", [n for n in LOOKERS if PARTS[n].slot == "distillation"])
def test_a_distillation_is_a_mean_over_the_batch(name: str, workshop: Workshop) -> None:
    """Every item twice gives the same loss: neither a sum over the batch nor a mean over classes as well."""
    found = []
    for times in (1, 2):
        loop = workshop.loop(**slots(name), data={"augmentation": 0.0, "flip": False})
        loop.bench.previous = onlooker(workshop_teacher(loop))
        items = np.repeat(loop._drawn.items[:8], times)
        loop._drawn = loop._drawn._replace(items=items)
        part = next(p for p in loop.bench.parts if p.key == name)
        loop.net.eval()
        found.append(part.call("loss", loop._step()).item())
    if PARTS[name].name != "dkpp":  # permutes at random, item by item
        assert found[0] == pytest.approx(found[1], rel=1e-4)


def workshop_teacher(loop: Loop) -> Any:
    return loop.bench.setting.teachers[0]


# --- 8: selection


@pytest.mark.parametrize("part", [None, "feature.delta", "sampling.selective_joint", "regularizer.l2_sp_fisher"])
def test_nothing_of_a_trial_depends_on_test(part: str | None, workshop: Workshop, tmp_path: Path) -> None:
    """Other pictures and labels in the test split: the same weights, values and predictions, bit for bit."""
    if part is not None and part not in PARTS:
        pytest.skip("not registered")
    spoiled = write_pack(tmp_path / "spoiled")
    split = np.load(spoiled / "split.npy")
    for file, value in (("pixels.npy", 0), ("labels.npy", 0)):
        array = np.load(spoiled / file)
        array[split == 2] = value
        np.save(spoiled / file, array)
    outcomes = []
    for place, pack in enumerate((workshop.pack, spoiled)):
        given = {} if part is None else slots(part)
        fit, reports = train(workshop.order(tmp_path / str(place), pack, **given))
        outcome = fit.outcome("tr_1")
        assert outcome.state == "COMPLETE", outcome.error
        outcomes.append((load_file(outcome.files["weights"]), [r.value for r in reports]))
    (weights, values), (others, other_values) = outcomes
    assert values == other_values
    assert all(torch.equal(weights[n], others[n]) for n in weights)


def test_a_loss_that_is_not_finite_fails_the_trial_by_name(workshop: Workshop, tmp_path: Path) -> None:
    """FAILED, with the epoch and the term: nothing of a diverged trial ranks."""
    order = workshop.order(
        tmp_path, steps=40, batch_norm="train", regularizer=("l2_sp", {"alpha": 1.0}),
        optimizer={"lr_head": 1e12, "inner_ratio": 10.0, "grad_clip": 0.0},
    )  # fmt: skip
    fit, _ = train(order)
    outcome = fit.outcome("tr_1")
    assert outcome.state == "FAILED"
    assert outcome.error_code == "diverged"
    assert "epoch 1" in (outcome.error or "")
    assert re.search(r"the \w+ loss is (nan|inf)|predictions on val", outcome.error or "")
    assert outcome.value is None
