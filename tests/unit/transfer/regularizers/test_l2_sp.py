"""L2-SP: its gradient, its optimum in closed form, and what it is at the ends."""

import pytest
import torch

from transfer.regularizers import l2, l2_sp
from transfer.step import PartState


@pytest.mark.parametrize("scope", ["kernels", "all"])
def test_the_gradient_is_alpha_times_the_way_from_the_start(make_step, moved, scope) -> None:
    weights, start = moved
    l2_sp.loss(make_step(weights, start), alpha=0.3, beta=0.7, scope=scope).backward()
    for name, w in weights.items():
        if scope == "kernels" and w.ndim < 2:
            assert w.grad is None, name
        else:
            expected = 0.3 * (w - start[name]) if name in start else 0.7 * w
            torch.testing.assert_close(w.grad, expected.detach())


def test_from_a_start_of_zero_it_is_weight_decay(make_step, moved) -> None:
    weights, start = moved
    zero = {name: torch.zeros_like(w) for name, w in start.items()}
    one = l2_sp.loss(make_step(weights, zero), alpha=0.3, beta=0.7, scope="all")
    two = l2.loss(make_step(weights, zero), alpha=0.3, beta=0.7, scope="all")
    torch.testing.assert_close(one, two)
    by_hand = 0.15 * sum(float((weights[n].detach() ** 2).sum()) for n in start)
    by_hand += 0.35 * sum(float((w.detach() ** 2).sum()) for n, w in weights.items() if n not in start)
    assert one.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_ridge_regression_towards_the_start(descend, momentum) -> None:
    """(X'X / n + a I)^-1 (X'y / n + a w0)."""
    rng = torch.Generator().manual_seed(0)
    x, y, start = (torch.randn(s, generator=rng) for s in ((40, 6), (40, 1), (6, 1)))
    found = descend(
        l2_sp, {"alpha": 0.5, "beta": 0.01, "scope": "kernels"}, lambda w: (x @ w - y).square().mean() / 2, start,
        momentum=momentum,
    )  # fmt: skip
    left, right = x.T @ x / 40 + 0.5 * torch.eye(6), x.T @ y / 40 + 0.5 * start
    torch.testing.assert_close(found, torch.linalg.solve(left, right), atol=1e-5, rtol=0)


def test_it_is_nothing_at_the_start_and_something_after_a_step(descend, make_step) -> None:
    start = torch.ones(3, 3)
    params = {"alpha": 0.1, "beta": 0.0, "scope": "all"}

    def value(w: torch.Tensor) -> float:
        return l2_sp.loss(make_step({"a.weight": w}, {"a.weight": start}), **params).item()

    assert value(start.clone()) == 0
    assert value(descend(l2_sp, params, lambda w: w.square().sum(), start, steps=1)) > 0


def test_decoupled_from_the_gradient_the_pull_is_a_step_of_its_own(make_step, moved) -> None:
    weights, start = moved
    before = {name: w.detach().clone() for name, w in weights.items()}
    step = make_step(weights, start, decoupled=True)
    assert float(l2_sp.loss(step, alpha=0.3, beta=0.7, scope="all")) == 0
    rates = dict.fromkeys(weights, 0.1)
    with torch.no_grad():
        l2_sp.after_step(step.weights, start, rates, PartState(), alpha=0.3, beta=0.7, scope="all")
    for name, w in weights.items():
        pulled = before[name] - 0.1 * 0.3 * (before[name] - start[name]) if name in start else before[name] * (1 - 0.07)
        torch.testing.assert_close(w.detach(), pulled)
