"""Gradual unfreezing: the trainable set of every phase, and that what waits keeps every bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.toys import go, make_order, make_recipe
from transfer.fold import FoldRun
from transfer.optimizers import cosine
from transfer.phase import Phase, Plan, covers
from transfer.schedules import gradual
from transfer.setting import Setting

Collect = Callable[..., list[Phase]]


def test_stages_are_thawed_from_the_output_side_and_stay_thawed(plan: Plan, carried_out: Collect) -> None:
    found = carried_out(gradual.phases(plan, unit="stage", share=0.6))
    assert [set(phase.trainable) for phase in found] == [
        {"head"}, {"c", "head"}, {"b", "c", "head"}, {"a", "b", "c", "head"},
    ]  # fmt: skip
    assert [phase.share for phase in found] == [pytest.approx(0.2)] * 3 + [None]
    assert {phase.begin for phase in found} == {"previous"}
    assert {phase.rate for phase in found} == {cosine}
    assert [phase.keep for phase in found] == ["last", "last", "last", "best"]


def test_blocks_are_finer_units(plan: Plan, carried_out: Collect) -> None:
    found = carried_out(gradual.phases(plan, unit="block", share=0.5))
    assert [phase.trainable for phase in found[:-1]] == [
        ("head",), ("c.0", "head"), ("b.1", "c.0", "head"), ("b.0", "b.1", "c.0", "head"),
    ]  # fmt: skip
    assert set(found[-1].trainable) == {"a", "b", "c", "head"}


def test_what_is_new_is_trained_from_the_first_phase_on(plan: Plan, carried_out: Collect) -> None:
    found = carried_out(gradual.phases(replace(plan, new=("c", "a.adapter")), unit="stage", share=0.5))
    assert [set(phase.trainable) for phase in found] == [
        {"head", "c", "a.adapter"}, {"b", "head", "c", "a.adapter"}, {"a", "b", "c", "head", "a.adapter"},
    ]  # fmt: skip


def test_what_waits_keeps_every_bit_and_what_is_thawed_moves(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(schedule=("gradual", {"share": 0.8}), steps=20, batch_norm="train")
    order = make_order(recipe, pack, source, tmp_path)
    run = FoldRun(Setting(order, order.trials[0], go), 0)
    states = [{n: t.clone() for n, t in run.net.state_dict().items()}]
    for _ in run.run():
        if len(run.outcomes) == len(states):
            states.append({n: t.clone() for n, t in run.net.state_dict().items()})
    assert [outcome.steps for outcome in run.outcomes] == [5, 5, 5, 5]
    trainable = [("head",), ("block3", "head"), ("block2", "block3", "head")]
    for before, after, names in zip(states[:3], states[1:4], trainable, strict=True):
        for name, tensor in before.items():
            assert torch.equal(after[name], tensor) != covers(names, name), name
