"""L1-SP: the soft threshold that a quadratic comes to rest at, exactly."""

import pytest
import torch

from transfer.regularizers import l1_sp
from transfer.step import PartState

PARAMS = {"alpha": 0.3, "beta": 0.01, "scope": "kernels", "proximal": True}
RNG = torch.Generator().manual_seed(4)
START, TARGET = torch.randn(6, 5, generator=RNG), torch.randn(6, 5, generator=RNG)
CURVATURE = torch.rand(6, 5, generator=RNG) + 0.5


def task(w):
    return (CURVATURE * (w - TARGET).square()).sum() / 2


def at_rest(alpha: float) -> torch.Tensor:
    """w0 + sign(d) max(|d| - alpha / h, 0), d = w* - w0."""
    d = TARGET - START
    return START + d.sign() * (d.abs() - alpha / CURVATURE).clamp(min=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimum_of_a_diagonal_quadratic(descend, momentum) -> None:
    """With momentum the very same: that is what 1 / (1 - m) is for."""
    found = descend(l1_sp, PARAMS, task, START, momentum=momentum)
    torch.testing.assert_close(found, at_rest(0.3), atol=5e-5, rtol=0)
    assert torch.equal(found == START, at_rest(0.3) == START)


def test_the_subgradient_hovers_about_the_same_place(descend) -> None:
    found = descend(l1_sp, {**PARAMS, "proximal": False}, task, START, lr=0.01, steps=1000)
    torch.testing.assert_close(found, at_rest(0.3), atol=2e-2, rtol=0)
    assert (found == START).float().mean() < (at_rest(0.3) == START).float().mean()


def test_the_stronger_the_more_weights_stay(descend) -> None:
    stay = [
        (descend(l1_sp, {**PARAMS, "alpha": alpha}, task, START, momentum=0.5, steps=400) == START).float().mean()
        for alpha in (1e-3, 0.1, 0.3, 1.0, 10.0)
    ]
    assert stay == sorted(stay)
    assert stay[0] < 0.1
    assert stay[-1] == 1


@pytest.mark.parametrize("proximal", [True, False])
def test_under_adamw_the_proximal_step_is_taken(make_step, moved, proximal) -> None:
    weights, start = moved
    before = {name: w.detach().clone() for name, w in weights.items()}
    params = {"alpha": 5.0, "beta": 0.7, "scope": "all", "proximal": proximal}
    step = make_step(weights, start, decoupled=True)
    value = l1_sp.loss(step, **params)
    assert not value.requires_grad  # shown, not felt
    assert value.item() == pytest.approx(5 * sum(float((before[n] - start[n]).abs().sum()) for n in start), rel=1e-5)
    with torch.no_grad():
        l1_sp.after_step(step.weights, start, dict.fromkeys(weights, 0.1), PartState(), **params)
    for name, w in weights.items():
        if name in start:
            d = before[name] - start[name]
            torch.testing.assert_close(w.detach(), start[name] + d.sign() * (d.abs() - 0.5).clamp(min=0))
        else:
            torch.testing.assert_close(w.detach(), before[name] * (1 - 0.07))


def test_the_gradient_through_the_loss(make_step, moved) -> None:
    weights, start = moved
    l1_sp.loss(make_step(weights, start), alpha=0.3, beta=0.7, scope="all", proximal=False).backward()
    for name, w in weights.items():
        expected = 0.3 * (w - start[name]).sign() if name in start else 0.7 * w
        torch.testing.assert_close(w.grad, expected.detach())
    same = {name: t.clone().requires_grad_() for name, t in start.items()}
    l1_sp.loss(make_step(same, start), alpha=0.3, beta=0.7, scope="all", proximal=False).backward()
    assert all(torch.count_nonzero(w.grad) == 0 for w in same.values())  # sign(0) = 0


def test_the_proximal_form_leaves_only_the_head_in_the_loss(make_step, moved) -> None:
    weights, start = moved
    l1_sp.loss(make_step(weights, start), **{**PARAMS, "beta": 0.7}).backward()
    assert {name for name, w in weights.items() if w.grad is not None} == {"head.weight"}
    torch.testing.assert_close(weights["head.weight"].grad, 0.7 * weights["head.weight"].detach())
