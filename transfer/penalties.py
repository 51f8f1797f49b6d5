"""How far weights are from a point, for penalties: one fused pass over many tensors, exact gradients, proximal steps.

w_i     weights, one tensor per layer        p_i     the points they are measured from, mostly the start w0
F_i     information, one factor per element (Fisher), >= 0; left out: 1
d_i     w_i - p_i

    half_squared_distance   1/2 sum_j F_j d_j^2                                 L2-SP; without points L2
    absolute_distance       sum_j |d_j|                                         L1-SP
    group_distance          sum_g sqrt(p_g) (sqrt(sum_{j in g} F_j d_j^2 + eps) - sqrt(eps)),  eps = 1e-16    GL-SP

A penalty is a plain sum over elements, added once per step, never divided by their number; the 1/2 sits inside the
squared one, so that the gradient of alpha times it is alpha (w - p). Always in float32: networks may run under
autocast, weights do not, and nothing here multiplies matrices.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from transfer.step import Weights

EPSILON = 1e-16  # under the root of a group's norm: the gradient at the point itself is 0 instead of 0 / 0
TINY = 1e-30
NEWTON_STEPS = 6  # at most, see `weighted_block_step`: three in training, five with F over ten decades


class _WorkedOut(torch.autograd.Function):
    """A value together with its gradient, both known before autograd is asked.

    Written out because the graph of a sum over tensors costs some ten launches per tensor: on a small network more than
    the penalty itself. torch's multi-tensor (`_foreach`) functions take the list at once.
    """

    @staticmethod
    def forward(ctx: Any, known: tuple[Tensor, list[Tensor], bool], *weights: Tensor) -> Tensor:  # noqa: ARG004
        value, ctx.gradients, ctx.owned = known
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.owned:
            return (None, *torch._foreach_mul(ctx.gradients, grads[0]))
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: nobody else holds it, and it is read once
        if gradients is None:
            raise RuntimeError("the gradient of a penalty can be taken once")
        torch._foreach_mul_(gradients, grads[0])
        return (None, *gradients)


def _worked_out(value: Tensor, gradients: list[Tensor], weights: list[Tensor], *, owned: bool = True) -> Tensor:
    found: Tensor = _WorkedOut.apply((value, gradients, owned), *weights)
    return found


def _check(weights: list[Tensor], *others: list[Tensor] | None) -> None:
    for other in others:
        if other is not None and len(other) != len(weights):
            raise ValueError(f"{len(weights)} weights but {len(other)} points or factors")


# --- values: inside `torch.no_grad()` no gradient is worked out


def half_squared_distance(
    weights: list[Tensor], points: list[Tensor] | None = None, information: list[Tensor] | None = None
) -> Tensor:  # ()
    """1/2 sum_j F_j (w_j - p_j)^2; without `points`, the distance from zero; without `information`, F = 1."""
    if not weights:
        return torch.zeros(())
    _check(weights, points, information)
    with torch.no_grad():
        moved = weights if points is None else list(torch._foreach_sub(weights, points))
        if information is None:
            value = torch.stack(torch._foreach_norm(moved)).square().sum() / 2
            gradients = moved
        else:
            gradients = list(torch._foreach_mul(moved, information))
            # Products of one sign: their 1-norm is their sum, for all tensors in one call.
            value = torch.stack(torch._foreach_norm(torch._foreach_mul(gradients, moved), 1)).sum() / 2
    return _worked_out(value, gradients, weights, owned=gradients is not weights)


def absolute_distance(weights: list[Tensor], points: list[Tensor]) -> Tensor:  # ()
    """sum_j |w_j - p_j|; its gradient is the sign, which is 0 at the point itself."""
    if not weights:
        return torch.zeros(())
    _check(weights, points)
    with torch.no_grad():
        moved = list(torch._foreach_sub(weights, points))
        value = torch.stack(torch._foreach_norm(moved, 1)).sum()
    if not torch.is_grad_enabled():
        return value
    with torch.no_grad():
        torch._foreach_sign_(moved)
    return _worked_out(value, moved, weights)


def group_distance(
    weights: list[Tensor], points: list[Tensor], information: list[Tensor] | None = None, *, groups: str
) -> Tensor:  # ()
    """sum_g sqrt(p_g) ||w_g - p_g||_2, or with F inside the norm; see `dims_of_group` for what a group is."""
    if not weights:
        return torch.zeros(())
    _check(weights, points, information)
    values, gradients, wanted = [], [], torch.is_grad_enabled()
    with torch.no_grad():
        for place, (weight, point) in enumerate(zip(weights, points, strict=True)):
            dims = dims_of_group(weight, groups)
            moved = weight - point
            pulled = moved if information is None else moved * information[place]
            norm = _sum(moved * pulled, dims).add_(EPSILON).sqrt_()  # (out, 1, ..., 1)
            size = math.sqrt(size_of_group(weight, groups))
            # Minus what the norm is at the point itself, so that the penalty is nothing there.
            values.append((norm - torch.full_like(norm, EPSILON).sqrt_()).sum() * size)
            if wanted:
                gradients.append(pulled.mul_(size / norm))
    return _worked_out(torch.stack(values).sum(), gradients, weights)


def dims_of_group(weight: Tensor, groups: str) -> tuple[int, ...]:
    """The dimensions along which the elements of one group lie.

    "channel"   the fan-in of one output channel: dims 1.. of (out, in, kh, kw), a row of (out, in). An element of a
                vector is the group of its channel: there the group penalty is the absolute one.
    "layer"     the whole tensor
    """
    return tuple(range(weight.ndim)) if groups == "layer" else tuple(range(1, weight.ndim))


def size_of_group(weight: Tensor, groups: str) -> int:
    """p_g, the number of weights in each group."""
    return math.prod(weight.shape[dim] for dim in dims_of_group(weight, groups))


def _sum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims, keepdim=True) if dims else x  # torch takes no dimensions for all of them


# --- steps in place, beside the optimizer's own


def strides(weights: Weights, names: Sequence[str], lr: Mapping[str, float], alpha: float) -> list[float]:
    """How far the proximal step of alpha R goes for each weight: lr alpha / (1 - m), m the momentum of its updates.

    Momentum carries a constant gradient 1 / (1 - m) times as far as one step does, and a step beside the optimizer
    once. Without the factor the two would balance at (1 - m) alpha: with it, a weight rests exactly where the gradient
    of the loss is met by alpha R, as it does when R is part of the loss. AdamW has m = 0 here: decoupled is decoupled.
    """
    return [lr[name] * alpha / (1 - weights.momentum.get(name, 0.0)) for name in names]


def pull(weights: list[Tensor], points: list[Tensor] | None, factors: list[float]) -> None:
    """w_i <- w_i - factor_i * (w_i - p_i): the decoupled form of the squared penalty."""
    if not weights:
        return
    if points is None:
        torch._foreach_mul_(weights, [1 - factor for factor in factors])
        return
    for w, p, factor in zip(weights, points, factors, strict=True):
        w.lerp_(p, factor)


def pull_by_information(
    weights: list[Tensor], points: list[Tensor], information: list[Tensor], factors: list[float]
) -> None:
    """w <- p + (w - p) / (1 + factor F), the proximal step of factor/2 sum_j F_j (w_j - p_j)^2.

    Unlike w - factor F (w - p), to which it is equal for small steps, it cannot overshoot: F is heavy-tailed.
    """
    _check(weights, points, information)
    if not weights:
        return
    moved = torch._foreach_sub(weights, points)
    damping = torch._foreach_mul(information, factors)
    torch._foreach_add_(damping, 1.0)
    torch._foreach_div_(moved, damping)
    _move(weights, points, moved)


def soft_threshold(weights: list[Tensor], points: list[Tensor], thresholds: list[float]) -> None:
    """w <- p + sign(w - p) max(|w - p| - t, 0): the proximal step of t sum_j |w_j - p_j|; what is within t is p."""
    _check(weights, points)
    if not weights:
        return
    moved = torch._foreach_sub(weights, points)
    cut = torch._foreach_clamp_max(moved, thresholds)
    torch._foreach_clamp_min_(cut, [-t for t in thresholds])
    torch._foreach_sub_(moved, cut)  # exactly 0 within the threshold
    _move(weights, points, moved)


def block_soft_threshold(
    weights: list[Tensor], points: list[Tensor], thresholds: list[float], information: list[Tensor] | None = None,
    *, groups: str,
) -> None:  # fmt: skip
    """w_g <- p_g + d_g max(1 - t sqrt(p_g) / ||d_g||, 0): the proximal step of the group penalty (without eps)."""
    _check(weights, points, information)
    for place, (weight, point, threshold) in enumerate(zip(weights, points, thresholds, strict=True)):
        moved = weight - point
        dims = dims_of_group(weight, groups)
        t = threshold * math.sqrt(size_of_group(weight, groups))
        if information is not None:
            at_once = len(moved) if groups == "layer" or moved.device.type != "cpu" else _rows_in_cache(moved)
            pairs = zip(moved.split(at_once), information[place].split(at_once), strict=True)
            moved = torch.cat([weighted_block_step(z, f, t, dims) for z, f in pairs])
        else:
            norm = torch.linalg.vector_norm(moved, dim=dims, keepdim=True) if dims else moved.abs()
            moved.mul_((1 - t / norm.clamp_min_(TINY)).clamp_min_(0))
        torch.add(point, moved, out=weight)


def _rows_in_cache(weight: Tensor) -> int:
    """Rows whose many passes stay within a core's cache: memory is what they would wait for."""
    return max(1, (1 << 15) * len(weight) // max(1, weight.numel()))


def weighted_block_step(z: Tensor, f: Tensor, t: float, dims: tuple[int, ...]) -> Tensor:
    """argmin_d 1/2 ||d - z||^2 + t sqrt(sum_j f_j d_j^2) for each group, shaped as z.

    d_j = z_j n / (n + t f_j), where n, the norm of the answer, solves sum_j f_j z_j^2 / (n + t f_j)^2 = 1, or is 0
    where no n > 0 does. With s(n) that sum, s^(-1/2) is concave and rising: Newton's steps on it, begun below the
    root, never pass it (the secular equation of trust regions; Moré & Sorensen 1983). Where all f are equal, the first
    guess is the answer already, the block soft threshold.
    """
    steep, square = t * f, f * z.square()
    if not dims:  # groups of one
        kept: Tensor = z * (1 - steep / square.sqrt_().clamp_min_(TINY)).clamp_min_(0)
        return torch.where(f > 0, kept, z)
    norm = _sum(square, dims).sqrt_()
    alone = (square.sqrt() - steep).amax(dims, keepdim=True)  # each element alone bounds the answer from below
    n = torch.maximum(norm - steep.amax(dims, keepdim=True), alone).clamp_min_(0)
    for _ in range(NEWTON_STEPS):
        inverse = (steep + n).clamp_min_(TINY).reciprocal_()
        ratio = square * inverse * inverse
        s, slope = _sum(ratio, dims), _sum(ratio.mul_(inverse), dims)
        before, n = n, (n + (s.sqrt() - 1) * s / slope.clamp_min_(TINY)).clamp_min_(0)
        if n.device.type == "cpu" and bool((n - before <= 1e-6 * n).all()):  # elsewhere asking would cost more
            break
    return torch.where(steep > 0, z * n / (n + steep).clamp_min_(TINY), z)


def _move(weights: list[Tensor], points: list[Tensor], moved: tuple[Tensor, ...] | list[Tensor]) -> None:
    torch._foreach_add_(moved, points)
    torch._foreach_copy_(weights, moved)
