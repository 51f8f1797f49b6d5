"""Penalties: exact gradients, known optima, the trajectory of weight decay."""

import pytest
import torch
from torch import Tensor

from transfer.optimizers import Group, Sgd
from transfer.penalties import half_squared_distance
from transfer.regularizers import l2, l2_sp
from transfer.step import PartState, Step, Weights


def make_step(weights: dict[str, Tensor], start: dict[str, Tensor], *, decoupled: bool = False) -> Step:
    def never(*_: object) -> None:
        raise AssertionError("a penalty looks at weights alone")

    return Step(
        inputs=torch.empty(0), targets=torch.empty(0), progress=0.0, seed=(0,), prepared={},
        weights=Weights(weights, start, decoupled=decoupled),
        student=never, source=never, teacher=never, task_loss=never,  # type: ignore[arg-type]
    )  # fmt: skip


def some_weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    shapes = {
        "stem.conv.weight": (4, 3, 3, 3),
        "stem.bn.weight": (4,),
        "stem.bn.bias": (4,),
        "head.weight": (2, 4),
        "head.bias": (2,),
    }
    weights = {n: torch.randn(s, generator=draw).requires_grad_() for n, s in shapes.items()}
    start = {n: torch.randn(w.shape, generator=draw) for n, w in weights.items() if not n.startswith("head")}
    return weights, start


@pytest.mark.parametrize("scope", ["kernels", "all"])
def test_the_gradient_of_l2_sp_is_alpha_times_the_way_from_the_start(scope: str) -> None:
    weights, start = some_weights()
    l2_sp.loss(make_step(weights, start), alpha=0.3, beta=0.7, scope=scope).backward()
    for name, w in weights.items():
        if scope == "kernels" and w.ndim < 2:
            assert w.grad is None, name
        else:
            expected = 0.3 * (w - start[name]) if name in start else 0.7 * w
            torch.testing.assert_close(w.grad, expected.detach())


def test_l2_sp_from_a_start_of_zero_is_l2() -> None:
    weights, start = some_weights()
    zero = {name: torch.zeros_like(w) for name, w in start.items()}
    one = l2_sp.loss(make_step(weights, zero), alpha=0.3, beta=0.7, scope="all")
    two = l2.loss(make_step(weights, zero), alpha=0.3, beta=0.7, scope="all")
    torch.testing.assert_close(one, two)
    by_hand = 0.15 * sum(float((weights[n].detach() ** 2).sum()) for n in start)
    by_hand += 0.35 * sum(float((w.detach() ** 2).sum()) for n, w in weights.items() if n not in start)
    assert one.item() == pytest.approx(by_hand, rel=1e-6)


def test_l2_walks_the_path_of_weight_decay() -> None:
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    curvature = torch.arange(1.0, 21.0).view(5, 4) / 10
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    weights = Weights({"a.weight": ours}, {"a.weight": start})
    mine = Sgd(weights, [Group(("a.weight",), 0.05, 0.9)])
    reference = torch.optim.SGD([theirs], lr=0.05, momentum=0.9, weight_decay=0.2)
    for _ in range(50):
        step = make_step({"a.weight": ours}, {"a.weight": start})
        ((curvature * (ours - 1).square()).sum() / 2 + l2.loss(step, alpha=0.2, beta=0.0, scope="kernels")).backward()
        mine.step(1.0)
        reference.zero_grad()
        ((curvature * (theirs - 1).square()).sum() / 2).backward()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for _ in range(2000):
        step = make_step({"a.weight": ours}, {"a.weight": start})
        ((curvature * (ours - 1).square()).sum() / 2 + l2.loss(step, alpha=0.2, beta=0.0, scope="kernels")).backward()
        mine.step(1.0)
    torch.testing.assert_close(ours.detach(), curvature / (curvature + 0.2))  # (H + aI)^-1 H w*


def test_the_optimum_of_l2_sp_lies_between_start_and_target() -> None:
    start, target, curvature, alpha = (
        torch.tensor([[2.0, -1.0]]),
        torch.tensor([[0.0, 3.0]]),
        torch.tensor([[1.0, 4.0]]),
        0.5,
    )
    w = start.clone().requires_grad_()
    optimizer = Sgd({"a.weight": w}, [Group(("a.weight",), 0.1, 0.0)])
    for _ in range(500):
        step = make_step({"a.weight": w}, {"a.weight": start})
        (
            (curvature * (w - target).square()).sum() / 2 + l2_sp.loss(step, alpha=alpha, beta=0.0, scope="all")
        ).backward()
        optimizer.step(1.0)
    torch.testing.assert_close(w.detach(), (curvature * target + alpha * start) / (curvature + alpha))


def test_decoupled_from_the_gradient_the_pull_is_a_step_of_its_own() -> None:
    weights, start = some_weights()
    before = {name: w.detach().clone() for name, w in weights.items()}
    step = make_step(weights, start, decoupled=True)
    assert float(l2_sp.loss(step, alpha=0.3, beta=0.7, scope="all")) == 0
    with torch.no_grad():
        l2_sp.after_step(
            step.weights, start, dict.fromkeys(weights, 0.1), PartState(), alpha=0.3, beta=0.7, scope="all"
        )
    for name, w in weights.items():
        pulled = before[name] - 0.1 * 0.3 * (before[name] - start[name]) if name in start else before[name] * (1 - 0.07)
        torch.testing.assert_close(w.detach(), pulled)


def test_penalties_are_float32_under_autocast() -> None:
    w = torch.full((3, 3), 1.001, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = half_squared_distance([w], [torch.ones(3, 3)])
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(4.5e-6, rel=1e-3)  # bfloat16 would see no difference at all
    value.backward()
    torch.testing.assert_close(w.grad, torch.full((3, 3), 0.001), rtol=1e-3, atol=0)
