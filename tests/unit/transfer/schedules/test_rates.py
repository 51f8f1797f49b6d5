"""Inner and outer learning rates: one step of SGD with equal gradients moves weights in the ratio of their rates."""

from pathlib import Path

import pytest
import torch

from tests.toys import go, make_order, make_recipe
from transfer.bench import Bench
from transfer.loop import Loop
from transfer.phase import Phase
from transfer.setting import Setting


@pytest.mark.parametrize(("ratio", "decay"), [(0.1, 1.0), (0.5, 0.4), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_displacements_are_in_the_ratio_of_the_rates(
    pack: Path, source: Path, tmp_path: Path, ratio: float, decay: float, factor: float
) -> None:
    """Stage s of n moves by r d^(n - 1 - s) of what the head moves, wherever the curve stands."""
    settings = {
        "lr_head": 0.125, "inner_ratio": ratio, "stage_decay": decay, "momentum": 0.0, "grad_clip": 0.0,
    }  # fmt: skip
    order = make_order(make_recipe(optimizer=settings), pack, source, tmp_path)
    bench = Bench(Setting(order, order.trials[0], go), 0)
    loop = Loop(bench, Phase(trainable=bench.plan.everything), 0, 10)
    for weight in loop.weights.values():
        torch.nn.init.zeros_(weight)  # so that no digit of a small step is lost
        weight.grad = torch.ones_like(weight)
    loop.optimizer.step(factor)
    stages = bench.net.stage_names
    head = loop.weights["head.weight"].detach()
    torch.testing.assert_close(head, torch.full_like(head, -0.125 * factor))
    for name, weight in loop.weights.items():
        unit = name.partition(".")[0]
        share = 1.0 if unit == "head" else ratio * decay ** (len(stages) - 1 - stages.index(unit))
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, -0.125 * factor * share))
