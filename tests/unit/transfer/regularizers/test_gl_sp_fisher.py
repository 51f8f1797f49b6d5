"""GL-SP-Fisher: the rest of a quadratic under both forms, GL-SP where F is 1."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from transfer.regularizers import gl_sp, gl_sp_fisher
from transfer.step import PartState

PARAMS = {
    "alpha": 0.2, "beta": 0.01, "groups": "channel", "scope": "kernels", "estimate": "sampled", "on": "target",
    "proximal": True,
}  # fmt: skip
RNG = torch.Generator().manual_seed(7)
START = torch.randn(5, 3, generator=RNG)
TARGET = START + torch.randn(5, 3, generator=RNG) * torch.linspace(0.1, 1.5, 5).view(5, 1)
F = torch.randn(5, 3, generator=RNG).exp()


def task(w):
    return 0.8 * (w - TARGET).square().sum() / 2


def at_rest(groups: str) -> torch.Tensor:
    """By scipy, from the target; groups at rest make the sum not smooth, so without gradients."""
    d0, f = (TARGET - START).double().numpy(), F.double().numpy()
    rows = [(d0.ravel(), f.ravel())] if groups == "layer" else list(zip(d0, f, strict=True))
    found = []
    for d, weight in rows:

        def total(x: np.ndarray, d: np.ndarray = d, weight: np.ndarray = weight) -> float:
            return float(0.4 * ((x - d) ** 2).sum() + 0.2 * np.sqrt(d.size * (weight * x**2).sum()))

        options = {"xatol": 1e-8, "fatol": 1e-12, "maxiter": 200_000, "maxfev": 200_000, "adaptive": True}
        best = minimize(total, d, method="Nelder-Mead", options=options)
        found.append(best.x if best.fun < total(np.zeros_like(d)) - 1e-9 else np.zeros_like(d))
    return START + torch.from_numpy(np.concatenate(found)).view(5, 3).float()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimum_of_a_quadratic(descend, momentum) -> None:
    found = descend(gl_sp_fisher, PARAMS, task, START, prepared={"fisher/a.weight": F}, momentum=momentum)
    expected = at_rest("channel")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    stays = found == START
    assert torch.equal(stays, expected == START)
    assert torch.equal(stays.any(1), stays.all(1))
    assert 0 < stays.all(1).sum() < 5


def test_through_the_loss_it_comes_to_the_same_place(descend) -> None:
    found = descend(
        gl_sp_fisher, {**PARAMS, "proximal": False}, task, START, prepared={"fisher/a.weight": F}, lr=0.008, steps=800
    )
    torch.testing.assert_close(found, at_rest("channel"), atol=2e-2, rtol=0)


@pytest.mark.parametrize("groups", ["channel", "layer"])
@pytest.mark.parametrize("proximal", [True, False])
def test_where_all_weights_matter_alike_it_is_gl_sp(make_step, moved, groups, proximal) -> None:
    weights, start = moved
    twins = {name: w.detach().clone().requires_grad_() for name, w in weights.items()}
    params = {**PARAMS, "alpha": 0.6, "groups": groups, "scope": "all", "proximal": proximal}
    plain = {key: value for key, value in params.items() if key not in ("estimate", "on")}
    prepared = {f"fisher/{name}": torch.ones_like(t) for name, t in start.items()}
    found = []
    for part, own, given in ((gl_sp_fisher, weights, params), (gl_sp, twins, plain)):
        step = make_step(own, start, prepared=prepared)
        value = part.loss(step, **given)
        value.backward()
        with torch.no_grad():
            part.after_step(step.weights, start, dict.fromkeys(own, 0.5), PartState(), **given)
        found.append(value.detach())
    torch.testing.assert_close(*found)
    for name, w in weights.items():
        torch.testing.assert_close(w.detach(), twins[name].detach())
        assert (w.grad is None) == (twins[name].grad is None)
        if w.grad is not None:
            torch.testing.assert_close(w.grad, twins[name].grad)


def test_it_is_nothing_at_the_start_and_something_after_a_step(make_step, moved) -> None:
    weights, start = moved
    still = {name: t.clone().requires_grad_() for name, t in start.items()}
    prepared = {f"fisher/{name}": torch.rand(t.shape) for name, t in start.items()}
    assert gl_sp_fisher.loss(make_step(still, start, prepared=prepared), **PARAMS).item() == 0
    assert gl_sp_fisher.loss(make_step(weights, start, prepared=prepared), **PARAMS).item() > 0


def test_under_adamw_only_the_step_beside_it_acts(make_step, moved) -> None:
    weights, start = moved
    before = {name: w.detach().clone() for name, w in weights.items()}
    prepared = {f"fisher/{name}": torch.rand(t.shape) + 0.1 for name, t in start.items()}
    params = {**PARAMS, "alpha": 1e3, "beta": 0.7, "scope": "all", "proximal": False}
    step = make_step(weights, start, decoupled=True, prepared=prepared)
    assert not gl_sp_fisher.loss(step, **params).requires_grad
    with torch.no_grad():
        gl_sp_fisher.after_step(step.weights, start, dict.fromkeys(weights, 0.1), PartState(), **params)
    for name, w in weights.items():
        torch.testing.assert_close(w.detach(), start[name] if name in start else before[name] * (1 - 0.07))
