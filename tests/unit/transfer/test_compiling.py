"""Compiled stages compute what eager ones do, and are used where they were measured to win."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional

from models.build import build
from tests.toys import go, make_order, make_recipe, train
from transfer import compiling, pace
from transfer.fit import Fit
from transfer.setting import Setting

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")


@needs_compiler
def test_a_trial_comes_to_the_same_with_compiled_stages(pack: Path, source: Path, tmp_path: Path) -> None:
    """Frozen stages, kept activations, taps of a part, evaluation in between: all of it around compiled stages."""
    recipe = make_recipe(steps=6, schedule=("freeze", {"depth": 1}), feature=("attention", {"beta": 10.0}))
    fits = {}
    for mode in ("eager", "compiled"):
        order = make_order(recipe, pack, source, tmp_path / mode, compiling=mode)
        Path(order.scratch).mkdir()
        counters.clear()
        fits[mode], _ = train(order)
        assert (counters["stats"]["unique_graphs"] >= 3) == (mode == "compiled"), "a stage each, and none fell back"
        assert fits[mode].outcome("tr_1").state == "COMPLETE", fits[mode].outcome("tr_1").error
        assert fits[mode].outcome("tr_1").facts.get("stages", "eager") == mode
    logits = {}
    for mode, fit in fits.items():
        with np.load(fit.outcome("tr_1").files["predictions"]) as saved:
            logits[mode] = saved["logits"]
    np.testing.assert_allclose(logits["eager"], logits["compiled"], atol=1e-3)
    assert not np.array_equal(logits["eager"], np.zeros_like(logits["eager"]))


@needs_compiler
def test_a_compiled_stage_shares_its_weights_and_is_compiled_once() -> None:
    net = build("tiny_smallnet", n_classes=3, seed=0).train()
    images, targets = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    found = []
    for mode in ("eager", "compiled"):
        net.zero_grad()
        functional.cross_entropy(net.look(images, stages=compiling.stages(net, mode)).logits, targets).backward()
        found.append({name: weight.grad.clone() for name, weight in net.named_parameters() if weight.grad is not None})
    assert found[0].keys() == found[1].keys() == dict(net.named_parameters()).keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-3)
    assert compiling.stages(net, "compiled") is compiling.stages(net, "compiled")


def page(compile_s: float, **seconds: float) -> dict[str, Any]:
    return {"seconds": seconds, "compile_s": {mode: compile_s for mode in seconds if mode != "eager"}}


@pytest.mark.parametrize(
    ("found", "n_steps", "wanted"),
    [
        (page(10, eager=1.0, compiled=0.5, graphs=0.4), 1000, "graphs"),
        (page(10, eager=1.0, compiled=0.5, graphs=0.6), 1000, "compiled"),
        (page(10, eager=1.0, compiled=0.95), 1000, "eager"),  # not by the margin
        (page(100, eager=1.0, compiled=0.5), 49, "eager"),  # 4 trials of 49 steps save 98 s
        (page(100, eager=1.0, compiled=0.5), 51, "compiled"),
        (page(0, eager=1.0), 1000, "eager"),  # what cannot be compiled is left out
    ],
)
def test_compiling_has_to_win_and_to_be_paid_back(found: dict[str, Any], n_steps: int, wanted: str) -> None:
    assert compiling.is_whole(found)
    assert compiling.chosen(found, n_steps) == wanted


def test_what_cannot_be_compiled_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    net = build("tiny_smallnet", n_classes=3, seed=0)
    found = compiling.measured(net, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), 1, nullcontext)
    assert set(found["seconds"]) == {"eager"}
    assert compiling.chosen(found, 10**6) == "eager"


def test_memory_that_is_too_short_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "compile", short)
    net = build("tiny_smallnet", n_classes=3, seed=0)
    with pytest.raises(torch.OutOfMemoryError):
        compiling.measured(net, torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]), 1, nullcontext)


@pytest.mark.parametrize(
    ("given", "steps", "is_asked", "wanted"),
    [
        ({}, 400, True, "graphs"),
        ({"batch_norm": "train"}, 400, True, "graphs"),
        ({}, 2, False, "eager"),  # nothing that so few steps could pay back
        ({"schedule": ("linear_probe", {}), "data": {"views": 1}}, 400, False, "eager"),  # computed once
        ({"feature": ("delta", {})}, 400, False, "eager"),  # looks at convolutions
        ({"surgery": ("residual_adapter", {})}, 400, False, "eager"),  # built for one trial
    ],
)
def test_an_accelerator_is_asked_where_it_may_pay(
    given: dict[str, Any], steps: int, is_asked: bool, wanted: str, pack: Path, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[dict[str, Any]] = []

    def remembered(facts: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        asked.append(facts)
        return page(1.0, eager=1.0) if facts["modes"] == "eager" else page(1.0, eager=1.0, compiled=0.5, graphs=0.4)

    recipe = make_recipe(steps=steps, **given)
    order = make_order(recipe, pack, source, tmp_path)
    setting = Setting(order, order.trials[0], go)
    setting.device = torch.device("cuda")
    monkeypatch.setattr("transfer.setting.remembered", remembered)
    monkeypatch.setattr("transfer.setting.machine_name", lambda _: "a card")
    assert setting.mode == wanted
    assert any("compiled" in facts["modes"] for facts in asked) == is_asked
    assert all(facts["batch_norm"] == recipe.batch_norm for facts in asked)


def test_a_trial_goes_on_in_the_mode_that_it_began_in(pack: Path, source: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(), pack, source, tmp_path)
    half = Fit(order, stopped=go)
    next(iter(half))
    assert half.point()[0]["mode"] == "eager"
    half.save(tmp_path / "point")
    forced = make_order(make_recipe(), pack, source, tmp_path, resume=tmp_path / "point", compiling="compiled")
    rest, _ = train(forced)
    assert rest.outcome("tr_1").facts["resumed"]
    assert "stages" not in rest.outcome("tr_1").facts


@needs_compiler
def test_stages_that_cannot_be_compiled_in_training_stay_eager(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(compiling, "stages", lambda net, _: dict.fromkeys(net.stage_names, broken))
    fit, _ = train(make_order(make_recipe(), pack, source, tmp_path, compiling="compiled"))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    assert "Stages could not be compiled: RuntimeError." in outcome.facts["remarks"]
    assert "stages" not in outcome.facts


def test_a_cpu_is_not_asked(pack: Path, source: Path, tmp_path: Path) -> None:
    pace.KNOWN.clear()
    order = make_order(make_recipe(), pack, source, tmp_path, paces=str(tmp_path / "paces"))
    assert Setting(order, order.trials[0], go).mode == "eager"
    noted = [json.loads(file.read_text()) for file in (tmp_path / "paces").iterdir()]
    assert not [page for page in noted if "modes" in page], "of the layout alone"
