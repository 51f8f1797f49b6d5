"""GL-SP: the block soft threshold, its groups, and L1-SP where groups have one weight."""

import pytest
import torch

from transfer.regularizers import gl_sp, l1_sp
from transfer.step import PartState

PARAMS = {"alpha": 0.2, "beta": 0.01, "groups": "channel", "scope": "kernels", "proximal": True}
RNG = torch.Generator().manual_seed(5)
SHAPE = (6, 2, 3, 3)
START = torch.randn(SHAPE, generator=RNG)
TARGET = START + torch.randn(SHAPE, generator=RNG) * torch.linspace(0.05, 1.0, 6).view(6, 1, 1, 1)
H = 0.8


def task(w):
    return H * (w - TARGET).square().sum() / 2


def at_rest(alpha: float, groups: str) -> torch.Tensor:
    """w0 + d max(1 - alpha s_g / (h ||d||), 0), d = w* - w0."""
    d = (TARGET - START).reshape(1 if groups == "layer" else 6, -1)
    kept = (1 - alpha * d.shape[1] ** 0.5 / (H * d.norm(dim=1, keepdim=True))).clamp(min=0)
    return START + (d * kept).view(SHAPE)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("groups", ["channel", "layer"])
def test_the_optimum_where_the_curvature_is_the_same_everywhere(descend, groups, momentum) -> None:
    found = descend(gl_sp, {**PARAMS, "groups": groups}, task, START, momentum=momentum)
    torch.testing.assert_close(found, at_rest(0.2, groups), atol=1e-5, rtol=0)
    assert torch.equal(found == START, at_rest(0.2, groups) == START)
    if groups == "channel":
        stays = (found == START).flatten(1)
        assert torch.equal(stays.any(1), stays.all(1))  # filters stay as wholes
        assert 0 < stays.all(1).sum() < 6


def test_through_the_loss_it_comes_to_the_same_place(descend) -> None:
    found = descend(gl_sp, {**PARAMS, "proximal": False}, task, START, lr=0.008, steps=800)
    torch.testing.assert_close(found, at_rest(0.2, "channel"), atol=2e-2, rtol=0)


@pytest.mark.parametrize("shape", [(8, 1), (10, 1, 1, 1), (12,)])
@pytest.mark.parametrize("proximal", [True, False])
def test_groups_of_one_weight_are_l1_sp(make_step, shape, proximal) -> None:
    start = {"a.weight": torch.randn(shape, generator=torch.Generator().manual_seed(6))}
    pairs = []
    for part in (gl_sp, l1_sp):
        weights = {"a.weight": (start["a.weight"] + torch.linspace(-1, 1, start["a.weight"].numel()).view(shape))}
        weights["a.weight"].requires_grad_()
        params = {"alpha": 0.3, "beta": 0.0, "scope": "all", "proximal": proximal}
        params |= {"groups": "channel"} if part is gl_sp else {}
        step = make_step(weights, start)
        value = part.loss(step, **params)
        if not proximal:
            value.backward()
        with torch.no_grad():
            part.after_step(step.weights, start, {"a.weight": 1.0}, PartState(), **params)
        pairs.append((value.detach(), weights["a.weight"].detach(), weights["a.weight"].grad))
    (one, at, slope), (other, there, steep) = pairs
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(at, there)
    if not proximal:
        torch.testing.assert_close(slope, steep)


def test_the_order_of_output_channels_does_not_matter(make_step) -> None:
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))

    def value(w: torch.Tensor, start: torch.Tensor) -> float:
        return gl_sp.loss(make_step({"a.weight": w}, {"a.weight": start}), **PARAMS).item()

    assert value(TARGET, START) == pytest.approx(value(TARGET[order], START[order]), rel=1e-6)
    assert value(TARGET, START) != pytest.approx(value(TARGET[order], START), rel=1e-2)


def test_the_value_is_that_of_the_formula(make_step, moved) -> None:
    weights, start = moved
    found = gl_sp.loss(make_step(weights, start), **{**PARAMS, "beta": 0.7})
    rows = {n: (weights[n] - start[n]).detach().reshape(w.shape[0], -1) for n, w in start.items() if w.ndim > 1}
    expected = 0.2 * sum(float(r.norm(dim=1).sum()) * r.shape[1] ** 0.5 for r in rows.values())
    expected += 0.35 * float((weights["head.weight"].detach() ** 2).sum())
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("proximal", [True, False])
def test_under_adamw_the_block_step_is_taken(make_step, moved, proximal) -> None:
    weights, start = moved
    before = {name: w.detach().clone() for name, w in weights.items()}
    params = {**PARAMS, "alpha": 2.0, "beta": 0.7, "proximal": proximal}
    step = make_step(weights, start, decoupled=True)
    assert not gl_sp.loss(step, **params).requires_grad
    with torch.no_grad():
        gl_sp.after_step(step.weights, start, dict.fromkeys(weights, 0.1), PartState(), **params)
    for name, w in weights.items():
        if name in start and w.ndim > 1:
            d = (before[name] - start[name]).flatten(1)
            kept = (1 - 0.2 * d.shape[1] ** 0.5 / d.norm(dim=1, keepdim=True)).clamp(min=0)
            torch.testing.assert_close(w.detach(), start[name] + (d * kept).view(w.shape))
        else:
            torch.testing.assert_close(w.detach(), before[name] * (1 - 0.07) if name == "head.weight" else before[name])
