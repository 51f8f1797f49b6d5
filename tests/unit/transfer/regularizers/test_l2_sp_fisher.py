"""L2-SP-Fisher: where a quadratic comes to rest, L2-SP where F is 1, and heavy tails."""

import pytest
import torch

from transfer.regularizers import l2_sp, l2_sp_fisher
from transfer.step import PartState

PARAMS = {"alpha": 0.5, "beta": 0.01, "scope": "kernels", "estimate": "sampled", "on": "target", "proximal": True}
RNG = torch.Generator().manual_seed(4)
START, TARGET = torch.randn(5, 1, generator=RNG), torch.randn(5, 1, generator=RNG)
F = torch.randn(5, 1, generator=RNG).exp()
ROOT = torch.randn(5, 5, generator=RNG)
H = ROOT @ ROOT.T / 5 + torch.eye(5)


def task(w):
    return ((w - TARGET).T @ H @ (w - TARGET)).sum() / 2


def with_information(start, f=None):
    return {f"fisher/{name}": torch.ones_like(t) if f is None else f[name] for name, t in start.items()}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("proximal", [True, False])
def test_the_optimum_of_a_quadratic(descend, momentum, proximal) -> None:
    """(H + a F)^-1 (H w* + a F w0)."""
    found = descend(
        l2_sp_fisher, {**PARAMS, "proximal": proximal}, task, START, prepared={"fisher/a.weight": F}, momentum=momentum
    )
    f = F.flatten().diag()
    expected = torch.linalg.solve(H + 0.5 * f, H @ TARGET + 0.5 * f @ START)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_heavy_tails_do_not_diverge(descend) -> None:
    """lr alpha F = 2500 for one weight: a gradient step would leave for infinity."""
    heavy = torch.tensor([[1e5], [1.0], [1.0], [0.0], [0.0]])
    found = descend(l2_sp_fisher, PARAMS, task, START, prepared={"fisher/a.weight": heavy}, momentum=0.9)
    f = heavy.flatten().diag()
    torch.testing.assert_close(found, torch.linalg.solve(H + 0.5 * f, H @ TARGET + 0.5 * f @ START), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scope", ["kernels", "all"])
def test_where_all_weights_matter_alike_it_is_l2_sp(make_step, moved, scope) -> None:
    weights, start = moved
    twins = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    params = {**PARAMS, "scope": scope, "proximal": False}
    one = l2_sp_fisher.loss(make_step(weights, start, prepared=with_information(start)), **params)
    two = l2_sp.loss(make_step(twins, start), alpha=0.5, beta=0.01, scope=scope)
    torch.testing.assert_close(one, two)
    one.backward()
    two.backward()
    for name, w in weights.items():
        assert (w.grad is None) == (twins[name].grad is None)
        if w.grad is not None:
            torch.testing.assert_close(w.grad, twins[name].grad)


def test_it_is_nothing_at_the_start_and_something_after_a_step(make_step, moved) -> None:
    weights, start = moved
    still = {name: t.clone().requires_grad_() for name, t in start.items()}
    prepared = with_information(start)
    assert l2_sp_fisher.loss(make_step(still, start, prepared=prepared), **PARAMS).item() == 0
    assert l2_sp_fisher.loss(make_step(weights, start, prepared=prepared), **PARAMS).item() > 0


@pytest.mark.parametrize("proximal", [True, False])
def test_under_adamw_the_proximal_step_is_taken(make_step, moved, proximal) -> None:
    weights, start = moved
    before = {name: w.detach().clone() for name, w in weights.items()}
    f = {name: torch.rand(t.shape) for name, t in start.items()}
    params = {**PARAMS, "alpha": 1.0, "beta": 0.7, "scope": "all", "proximal": proximal}
    step = make_step(weights, start, decoupled=True, prepared=with_information(start, f))
    assert not l2_sp_fisher.loss(step, **params).requires_grad
    with torch.no_grad():
        l2_sp_fisher.after_step(step.weights, start, dict.fromkeys(weights, 0.1), PartState(), **params)
    for name, w in weights.items():
        if name in start:
            expected = start[name] + (before[name] - start[name]) / (1 + 0.1 * f[name])
        else:
            expected = before[name] * (1 - 0.07)
        torch.testing.assert_close(w.detach(), expected)
