"""Distances and proximal steps against expressions that autograd and scipy work out by themselves."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from transfer.penalties import (
    EPSILON,
    absolute_distance,
    block_soft_threshold,
    group_distance,
    half_squared_distance,
    pull,
    pull_by_information,
    soft_threshold,
    strides,
    weighted_block_step,
)  # fmt: skip
from transfer.step import Weights

SHAPES = [(4, 3, 3, 3), (5, 6), (7,), (6, 1, 3, 3)]


def draw(seed: int, *, positive: bool = False) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=rng) for shape in SHAPES]
    return [f.exp() for f in found] if positive else found


def by_group(x: Tensor, groups: str) -> Tensor:
    """(number of groups, size of each): written out for comparison."""
    if groups == "layer":
        return x.reshape(1, -1)
    return x.reshape(x.shape[0], -1)


def group_norms(w: list[Tensor], p: list[Tensor], f: list[Tensor], groups: str) -> Tensor:
    total = torch.zeros(())
    for one, point, weight in zip(w, p, f, strict=True):
        rows = by_group(weight * (one - point) ** 2, groups)
        total = total + rows.shape[1] ** 0.5 * (rows.sum(1) + EPSILON).sqrt().sum()
    return total


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["squared", "absolute", "channel", "layer"])
def test_value_and_gradient_are_those_of_the_written_out_sum(kind: str, weighted: bool) -> None:
    start, f = draw(2), draw(3, positive=True)
    one = [w.requires_grad_() for w in draw(1)]
    two = [w.requires_grad_() for w in draw(1)]
    given = f if weighted else None
    ones = f if weighted else [torch.ones_like(x) for x in f]
    if kind == "squared":
        value = half_squared_distance(one, start, given)
        expected = sum((x * (w - p) ** 2).sum() for x, w, p in zip(ones, two, start, strict=True)) / 2
    elif kind == "absolute":
        value = absolute_distance(one, start)
        expected = sum((w - p).abs().sum() for w, p in zip(two, start, strict=True))
    else:
        value = group_distance(one, start, given, groups=kind)
        expected = group_norms(two, start, ones, kind)
    torch.testing.assert_close(value, expected)
    (0.3 * value).backward()
    (0.3 * expected).backward()
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_from_zero_without_points() -> None:
    weights = [w.requires_grad_() for w in draw(1)]
    value = half_squared_distance(weights)
    assert value.item() == pytest.approx(sum(float((w.detach() ** 2).sum()) for w in weights) / 2, rel=1e-5)
    value.backward()
    assert all(torch.equal(w.grad, w) for w in weights)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_at_the_start_there_is_no_value_and_no_gradient(layout: torch.memory_format) -> None:
    start = [torch.randn(4, 3, 3, 3).to(memory_format=layout)]
    f = [torch.rand(4, 3, 3, 3)]
    for value in (
        lambda w: half_squared_distance(w, start), lambda w: half_squared_distance(w, start, f),
        lambda w: absolute_distance(w, start), lambda w: group_distance(w, start, groups="channel"),
        lambda w: group_distance(w, start, f, groups="layer"),
    ):  # fmt: skip
        weights = [start[0].clone(memory_format=torch.preserve_format).requires_grad_()]
        found = value(weights)
        assert found.item() == 0
        found.backward()
        assert torch.count_nonzero(weights[0].grad) == 0


def test_values_are_float32_under_autocast() -> None:
    w, p, f = [torch.full((3, 3), 1.001, requires_grad=True)], [torch.ones(3, 3)], [torch.full((3, 3), 2.0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which sees no difference between 1 and 1.001
        found = {
            "squared": (half_squared_distance(w, p), 4.5e-6), "weighted": (half_squared_distance(w, p, f), 9e-6),
            "absolute": (absolute_distance(w, p), 9e-3),
            "groups": (group_distance(w, p, groups="channel"), 3 * 3**0.5 * 3**0.5 * 1e-3),
            "weighted groups": (group_distance(w, p, f, groups="channel"), 3 * 3**0.5 * 6**0.5 * 1e-3),
        }  # fmt: skip
    for name, (value, expected) in found.items():
        assert value.dtype == torch.float32, name
        assert value.item() == pytest.approx(expected, rel=1e-3), name


def test_no_gradient_is_worked_out_where_none_is_recorded() -> None:
    w = [torch.ones(2, 2, requires_grad=True)]
    with torch.no_grad():
        assert not absolute_distance(w, [torch.zeros(2, 2)]).requires_grad
        assert not group_distance(w, [torch.zeros(2, 2)], groups="channel").requires_grad


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 weights but 1"):
        half_squared_distance(draw(1)[:2], draw(2)[:1])


def test_the_gradient_of_a_penalty_is_taken_once() -> None:
    w = [torch.ones(2, 2, requires_grad=True)]
    value = absolute_distance(w, [torch.zeros(2, 2)])
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        value.backward()


# --- proximal steps: the least of 1/2 ||w - z||^2 + t R(w)


def least(z: np.ndarray, penalty: object) -> np.ndarray:
    from_above = minimize(
        lambda w: ((w - z) ** 2).sum() / 2 + penalty(w), z, method="Nelder-Mead",  # type: ignore[operator]
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 40000, "maxfev": 40000},
    )  # fmt: skip
    return np.asarray(from_above.x)


def test_soft_threshold() -> None:
    w, p = draw(1), draw(2)
    expected = [q + torch.sign(x - q) * ((x - q).abs() - 0.5).clamp(min=0) for x, q in zip(w, p, strict=True)]
    soft_threshold(w, p, [0.5] * len(w))
    for one, other, point in zip(w, expected, p, strict=True):
        torch.testing.assert_close(one, other)
        assert torch.equal(one == point, other == point)  # bits of the start, not something near it
        assert 0 < (one == point).float().mean() < 1


@pytest.mark.parametrize("groups", ["channel", "layer"])
def test_block_soft_threshold(groups: str) -> None:
    w, p = draw(1), draw(2)
    before = [x.clone() for x in w]
    block_soft_threshold(w, p, [0.2, 0.9, 0.5, 5.0], groups=groups)
    for x, z, q, t in zip(w, before, p, [0.2, 0.9, 0.5, 5.0], strict=True):
        d = by_group(z - q, groups)
        kept = (1 - t * d.shape[1] ** 0.5 / d.norm(dim=1, keepdim=True)).clamp(min=0)
        torch.testing.assert_close(x, q + (d * kept).view_as(q))
    assert torch.equal(w[3], p[3])  # a threshold beyond every group


def test_the_weighted_block_step_is_the_least_of_its_sum() -> None:
    rng = np.random.default_rng(0)
    for t in (0.01, 0.3, 1.0):
        z, f = rng.normal(size=4), np.exp(2 * rng.normal(size=4))
        found = weighted_block_step(torch.tensor(z)[None], torch.tensor(f)[None], t, (1,))[0].numpy()
        expected = least(z, lambda w, t=t, f=f: t * np.sqrt((f * w**2).sum()))
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("t", [1e-6, 1e-3, 0.1, 2.0])
def test_the_weighted_block_step_meets_its_condition(t: float, spread: float) -> None:
    """d - z + t F d / ||d||_F = 0 where the group is away from the start; F over many decades."""
    rng = torch.Generator().manual_seed(3)
    z = 0.01 * torch.randn(16, 2, 3, 3, generator=rng)
    f = (spread * torch.randn(z.shape, generator=rng)).exp()
    d = weighted_block_step(z, f, t, (1, 2, 3))
    norm = (f * d.square()).sum((1, 2, 3), keepdim=True).sqrt()
    away = norm.flatten() > 0
    residual = (d - z + t * f * d / norm.clamp_min(1e-30))[away]
    assert residual.abs().max() < 1e-4 * z.abs().max() if away.any() else True
    # At rest: a subgradient of length one at most undoes z.
    pressed = ((z / f.sqrt()).square().sum((1, 2, 3)).sqrt() / t)[~away]
    assert (pressed <= 1 + 1e-4).all()
    assert torch.count_nonzero(d[~away]) == 0


def test_the_weighted_block_step_where_all_weigh_the_same_and_where_some_weigh_nothing() -> None:
    z, p = draw(1)[0], torch.zeros(4, 3, 3, 3)
    plain, weighted = [z.clone()], [z.clone()]
    block_soft_threshold(plain, [p], [0.3], groups="channel")
    block_soft_threshold(weighted, [p], [0.3], [torch.ones_like(z)], groups="channel")
    torch.testing.assert_close(plain, weighted)
    f = torch.ones_like(z)
    f[:, 0] = 0
    d = weighted_block_step(z, f, 100.0, (1, 2, 3))
    assert torch.equal(d[:, 0], z[:, 0])
    assert torch.count_nonzero(d[:, 1:]) == 0
    assert torch.equal(weighted_block_step(p, f, 0.1, (1, 2, 3)), p)  # nowhere to go


def test_a_group_of_one_is_an_absolute_value() -> None:
    z, f = torch.tensor([3.0, -2.0, 0.1, 1.0]), torch.tensor([4.0, 0.25, 1.0, 0.0])
    d = weighted_block_step(z, f, 0.5, ())
    torch.testing.assert_close(d, torch.tensor([2.0, -1.75, 0.0, 1.0]))  # |z| - t sqrt(F)


def test_pulls() -> None:
    w, p, f = draw(1), draw(2), draw(3, positive=True)
    w = [x.contiguous() for x in w]
    before = [x.clone() for x in w]
    pull_by_information(w, p, f, [0.3] * len(w))
    for x, z, q, i in zip(w, before, p, f, strict=True):
        torch.testing.assert_close((x - z) + 0.3 * i * (x - q), torch.zeros_like(x), atol=1e-5, rtol=0)
    pull(w, p, [1.0] * len(w))
    for x, q in zip(w, p, strict=True):
        torch.testing.assert_close(x, q)


def test_strides_follow_momentum() -> None:
    weights = Weights({"a": torch.zeros(1), "b": torch.zeros(1)}, {})
    weights.momentum = {"a": 0.9}
    assert strides(weights, ["a", "b"], {"a": 0.1, "b": 0.2}, 0.5) == pytest.approx([0.5, 0.1])
