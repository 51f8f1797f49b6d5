"""BiT-HyperRule: its table, its staircase beside the authors' own supports, the head at zero."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.build import build
from tests.toys import go, make_order, make_recipe
from transfer.bench import Bench
from transfer.loop import Loop
from transfer.phase import Phase, Plan, Site
from transfer.schedules import bit_hyperrule
from transfer.schedules.bit_hyperrule import hyperrule
from transfer.setting import Setting

Collect = Callable[..., list[Phase]]


@pytest.mark.parametrize(
    ("n", "height", "width", "steps", "mixup_alpha", "sizes"),
    [
        (1, 32, 32, 500, 0.0, (160, 128)),
        (19_999, 96, 95, 500, 0.0, (160, 128)),
        (19_999, 96, 96, 500, 0.0, (448, 384)),
        (20_000, 32, 32, 10_000, 0.1, (160, 128)),
        (20_000, 500, 375, 10_000, 0.1, (448, 384)),
        (499_999, 64, 143, 10_000, 0.1, (160, 128)),  # 9152 < 9216
        (499_999, 64, 144, 10_000, 0.1, (448, 384)),
        (500_000, 32, 32, 20_000, 0.1, (160, 128)),
        (1_281_167, 224, 224, 20_000, 0.1, (448, 384)),
    ],
)
def test_the_table(n: int, height: int, width: int, steps: int, mixup_alpha: float, sizes: tuple[int, int]) -> None:
    rule = hyperrule(n, height, width)
    assert (rule.steps, rule.mixup_alpha, (rule.resize, rule.crop)) == (steps, mixup_alpha, sizes)


def test_the_rate_grows_with_the_batch() -> None:
    assert hyperrule(100, 32, 32).lr(512) == pytest.approx(0.003)
    assert hyperrule(100, 32, 32).lr(64) == pytest.approx(0.000375)


def authors_factor(step: int, supports: list[int]) -> float:
    """What their staircase says, told by hand: up in a line to the first support, a tenth after each one passed."""
    if step < supports[0]:
        return step / supports[0]
    return 0.1 ** sum(support < step for support in supports[1:])


@pytest.mark.parametrize(
    ("n_train", "supports"),
    [(20_000, [500, 3000, 6000, 9000, 10_000]), (500_000, [500, 6000, 12_000, 18_000, 20_000])],
)
def test_the_rate_at_every_boundary(plan: Plan, carried_out: Collect, n_train: int, supports: list[int]) -> None:
    """Ours is the authors' one step earlier: they begin at rate 0 and fall after the boundary."""
    steps = supports[-1]
    (phase,) = carried_out(bit_hyperrule.phases(replace(plan, n_train=n_train, steps=steps)))
    for boundary in supports[:-1]:
        for step in (boundary - 2, boundary - 1, boundary, boundary + 1):
            assert phase.rate(step, steps, 0.05) == pytest.approx(authors_factor(step + 1, supports)), step
    assert phase.rate(0, steps, 0.05) == pytest.approx(1 / 500)
    assert phase.rate(steps - 1, steps, 0.05) == pytest.approx(1e-3)


def test_few_images_fall_where_the_text_says(plan: Plan, carried_out: Collect) -> None:
    (phase,) = carried_out(bit_hyperrule.phases(replace(plan, steps=500)))
    found = [phase.rate(step, 500, 0.05) for step in (0, 98, 99, 149, 150, 299, 300, 449, 450, 499)]
    assert found == pytest.approx([0.01, 0.99, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_warm_up_and_stairs_keep_their_share_of_other_budgets(plan: Plan, carried_out: Collect) -> None:
    (long,) = carried_out(bit_hyperrule.phases(replace(plan, steps=500)))
    (short,) = carried_out(bit_hyperrule.phases(replace(plan, steps=50)))
    at = [long.rate(10 * step + 9, 500, 0.0) for step in range(50)]
    assert [short.rate(step, 50, 0.0) for step in range(50)] == pytest.approx(at)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_the_head_says_nothing_at_first_and_can_learn(head: str) -> None:
    net = build("tiny_smallnet", n_classes=4, head=head, seed=3)  # type: ignore[arg-type]
    site = Site(rng=torch.Generator().manual_seed(0), n_classes=4)
    rebuilt = bit_hyperrule.rebuild(net, site)
    logits = rebuilt.net(torch.randn(2, 3, 32, 32))
    assert torch.equal(logits, torch.zeros(2, 4))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    last = [m for m in net.head.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert last.weight.grad is not None
    assert last.weight.grad.abs().max() > 0
    assert rebuilt.new == ()


@pytest.mark.parametrize("n_train", [19_999, 20_000])
def test_every_weight_has_the_rules_rate_and_mixup_is_the_rules(
    plan: Plan, carried_out: Collect, n_train: int, pack: Path, source: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        schedule=("bit_hyperrule", {}), optimizer={"lr_head": 0.7, "stage_decay": 0.5, "momentum": 0.0},
        data={"mixup_alpha": 0.4},
    )  # fmt: skip
    order = make_order(recipe, pack, source, tmp_path)
    bench = Bench(Setting(order, order.trials[0], go), 0)
    (phase,) = carried_out(bit_hyperrule.phases(replace(bench.plan, n_train=n_train)))
    loop = Loop(bench, phase, 0, 10)
    assert set(loop.optimizer.peak.values()) == {0.003 * 16 / 512}
    assert {group.momentum for group in loop.optimizer.groups} == {0.9}
    assert set(loop.optimizer.peak) == set(dict(bench.net.named_parameters()))
    assert loop._mixup == (0.1 if n_train >= 20_000 else 0.0)
    assert bit_hyperrule.CLASHES == ("regularizer",)
