"""Chain-thaw: one unit at a time, constant rates, the best kept, so that val never gets worse."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import go, make_order, make_recipe
from transfer.evaluate import softmax
from transfer.fold import FoldRun
from transfer.optimizers import constant
from transfer.phase import Phase, Plan, covers
from transfer.schedules import chain_thaw
from transfer.setting import Setting

Collect = Callable[..., list[Phase]]


@pytest.mark.parametrize(
    ("unit", "alone"), [("stage", [("a",), ("b",), ("c",)]), ("block", [("a",), ("b.0",), ("b.1",), ("c.0",)])]
)
def test_the_head_then_each_unit_alone_then_everything(
    plan: Plan, carried_out: Collect, unit: str, alone: list[tuple[str]]
) -> None:
    found = carried_out(chain_thaw.phases(plan, unit=unit, patience=3))
    assert [phase.trainable for phase in found] == [("head",), *alone, ("a", "b", "c", "head")]
    n = len(found)
    assert [phase.share for phase in found] == [pytest.approx(1 / n)] * (n - 1) + [None]
    assert {(phase.begin, phase.keep, phase.patience, phase.rate) for phase in found} == {("best", "best", 3, constant)}


def test_what_is_new_is_trained_with_the_head_and_is_no_unit(plan: Plan, carried_out: Collect) -> None:
    found = carried_out(chain_thaw.phases(replace(plan, new=("c",)), unit="block", patience=5))
    assert [phase.trainable for phase in found] == [
        ("head", "c"), ("a",), ("b.0",), ("b.1",), ("a", "b", "c", "head"),
    ]  # fmt: skip


def carried(
    pack: Path, source: Path, tmp_path: Path, **given: Any
) -> tuple[FoldRun, list[dict[str, Any]], list[float]]:
    """A run, the states of its network at the end of every phase, and the log-loss on val of each."""
    recipe = make_recipe(schedule=("chain_thaw", {"patience": 2}), **given)
    order = make_order(recipe, pack, source, tmp_path, objective="log_loss")
    run = FoldRun(Setting(order, order.trials[0], go), 0)
    states, losses = [{n: t.clone() for n, t in run.net.state_dict().items()}], []
    for _ in run.run():
        if len(run.outcomes) == len(states):
            states.append({n: t.clone() for n, t in run.net.state_dict().items()})
            losses.append(log_loss(run))
    return run, states, losses


def log_loss(run: FoldRun) -> float:
    with torch.no_grad():
        logits = torch.cat([run.net.eval()(x) for x, _ in run.bench.batches(run.bench.val)]).numpy()
    found = -torch.from_numpy(softmax(logits)).log()[range(len(logits)), run.bench.val_labels].mean()
    return float(found)


def test_the_loss_on_val_never_rises_and_only_the_unit_moves(pack: Path, source: Path, tmp_path: Path) -> None:
    run, states, losses = carried(pack, source, tmp_path, steps=40, batch_norm="train", optimizer={"lr_head": 0.2})
    assert len(losses) == 5
    assert all(after <= before + 1e-6 for before, after in pairwise(losses))
    units = [("head",), ("block1",), ("block2",), ("block3",)]
    for before, after, unit in zip(states[:4], states[1:5], units, strict=True):
        moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
        assert all(covers(unit, name) for name in moved)
    assert any(not torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert run.best is not None
    assert run.best.log_loss == pytest.approx(losses[-1], abs=1e-6)


def test_phases_that_never_improve_are_rolled_back(pack: Path, source: Path, tmp_path: Path) -> None:
    """Stages at an absurd rate: all that is left is what the head alone has learnt."""
    _, states, losses = carried(
        pack, source, tmp_path, steps=40, batch_norm="train",
        optimizer={"lr_head": 0.5, "inner_ratio": 10.0, "grad_clip": 0.0, "momentum": 0.0},
    )  # fmt: skip
    for place in range(1, len(losses)):
        if losses[place] == losses[place - 1]:
            assert all(torch.equal(states[place + 1][n], t) for n, t in states[place].items())
    assert any(after == before for before, after in pairwise(losses))
