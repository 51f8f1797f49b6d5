"""Averages of weights against plain means of what was recorded along the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.toys import go, make_order, make_recipe
from transfer.averaging import ema, swa
from transfer.bench import Bench
from transfer.loop import Loop
from transfer.phase import Phase
from transfer.setting import Setting
from transfer.step import PartState, Weights


def trajectory(n: int) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights and running statistics after each of n steps."""
    draw = torch.Generator().manual_seed(2)
    return [
        ({"w": torch.randn(3, 2, generator=draw), "b": torch.randn(2, generator=draw)},
         {"bn.running_mean": torch.randn(4, generator=draw)})
        for _ in range(n)
    ]  # fmt: skip


def averaged(part: Any, steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]], **params: float) -> dict[str, Tensor]:
    state = PartState()
    for t, (weights, buffers) in enumerate(steps):
        state.progress = t / len(steps)
        part.after_step(Weights(weights, {}, buffers=buffers), {}, {}, state, **params)
    return state.averaged


@pytest.mark.parametrize("share", [0.05, 0.25, 0.3, 0.75])
@pytest.mark.parametrize("n", [20, 40, 60, 100])
def test_swa_is_the_plain_mean_of_the_last_share(share: float, n: int) -> None:
    steps = trajectory(n)
    found = averaged(swa, steps, share=share)
    counted = steps[-round(share * n) :]
    assert found.keys() == {"w", "b", "bn.running_mean"}
    for name, mean in found.items():
        expected = np.mean([({**w, **b})[name].double().numpy() for w, b in counted], axis=0)
        np.testing.assert_allclose(mean.numpy(), expected, atol=1e-6)


def test_swa_leaves_the_live_weights_alone_and_forgets_none() -> None:
    steps = trajectory(8)
    copies = [w["w"].clone() for w, _ in steps]
    averaged(swa, steps, share=0.5)
    assert all(torch.equal(w["w"], copy) for (w, _), copy in zip(steps, copies, strict=True))


def test_swa_does_not_average_a_phase_that_is_too_short() -> None:
    assert averaged(swa, trajectory(3), share=0.05) == {}


def test_averages_of_what_does_not_move_are_what_it_is() -> None:
    still = trajectory(1) * 30
    for found in (averaged(swa, still, share=0.5), averaged(ema, still, decay=0.9)):
        torch.testing.assert_close(found["w"], still[0][0]["w"])


@pytest.mark.parametrize("decay", [0.9, 0.999])
def test_ema_by_hand(decay: float) -> None:
    """a_0 = w_0, a_t = d_t a + (1 - d_t) w_t with d_t = min(decay, (1 + t) / (10 + t)); statistics alike."""
    steps = trajectory(120)
    found = averaged(ema, steps, decay=decay)
    for name in ("w", "bn.running_mean"):
        values = [({**w, **b})[name].double().numpy() for w, b in steps]
        average = values[0]
        for t, value in enumerate(values[1:], start=1):
            d = min(decay, (1 + t) / (10 + t))
            average = d * average + (1 - d) * value
        np.testing.assert_allclose(found[name].numpy(), average, atol=1e-5)


def test_a_fit_with_swa_is_evaluated_at_the_mean_of_its_last_steps(pack: Path, source: Path, tmp_path: Path) -> None:
    """Recorded along a real run, batch-norm statistics included; before the average begins the live weights count."""
    recipe = make_recipe(averaging=("swa", {"share": 0.5}), batch_norm="train", steps=8)
    order = make_order(recipe, pack, source, tmp_path)
    bench = Bench(Setting(order, order.trials[0], go), 0)
    loop = Loop(bench, Phase(trainable=bench.plan.everything), 0, 8)
    trail: list[dict[str, Tensor]] = []
    step = loop.optimizer.step

    def recorded(factor: float) -> None:
        step(factor)
        trail.append({n: t.clone() for n, t in bench.net.state_dict().items() if t.is_floating_point()})

    loop.optimizer.step = recorded  # type: ignore[method-assign]
    for _ in loop.train():
        if loop.step <= 4:
            assert not loop.states["averaging.swa"].averaged
    live = {n: t.clone() for n, t in bench.net.state_dict().items()}
    logits = loop.predict(bench.val)
    assert all(torch.equal(t, live[n]) for n, t in bench.net.state_dict().items())
    with torch.no_grad():
        for name, tensor in bench.net.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.stack([seen[name] for seen in trail[4:]]).mean(0))
        expected = torch.cat([bench.net.eval()(x) for x, _ in bench.batches(bench.val)])
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
