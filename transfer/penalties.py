"""Squared distances of weights from a point, for penalties: one fused pass over many tensors, exact gradients.

A penalty is summed over elements and added once per step; the 1/2 sits inside, so the gradient of
`alpha * half_squared_distance(w, w0)` is alpha * (w - w0). Always in float32, whatever the autocast of the networks.
"""

from typing import Any

import torch
from torch import Tensor


class _HalfSquaredDistance(torch.autograd.Function):
    """1/2 sum_i ||w_i - p_i||^2 over lists of tensors; its gradient, w_i - p_i, is kept from the forward pass.

    Written out because the graph of a sum over tensors costs some ten launches per tensor: on a small network more than
    the penalty itself. torch's multi-tensor (`_foreach`) functions take the list at once.
    """

    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor) -> Tensor:
        weights, points = list(tensors[:n]), list(tensors[n:])
        moved = list(torch._foreach_sub(weights, points)) if points else weights
        if points:
            ctx.moved = moved
        else:
            ctx.save_for_backward(*weights)
        ctx.n_points = len(points)
        return torch.stack(torch._foreach_norm(moved)).square().sum() / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.n_points:
            return (None, *torch._foreach_mul(ctx.saved_tensors, grads[0]))
        moved, ctx.moved = ctx.moved, None  # scaled in place: nobody else holds it, and it is read once
        if moved is None:
            raise RuntimeError("the gradient of a penalty can be taken once")
        torch._foreach_mul_(moved, grads[0])
        return (None, *moved, *([None] * ctx.n_points))


def half_squared_distance(weights: list[Tensor], points: list[Tensor] | None = None) -> Tensor:  # ()
    """1/2 sum_i ||w_i - p_i||^2; without `points`, the distance from zero."""
    if not weights:
        return torch.zeros(())
    if points is not None and len(points) != len(weights):
        raise ValueError(f"{len(weights)} weights but {len(points)} points")
    value: Tensor = _HalfSquaredDistance.apply(len(weights), *weights, *(points or []))
    return value


def pull(weights: list[Tensor], points: list[Tensor] | None, factors: list[float]) -> None:
    """w_i <- w_i - factor_i * (w_i - p_i) in place: the decoupled form of the same penalty."""
    if points is None:
        torch._foreach_mul_(weights, [1 - factor for factor in factors])
        return
    for w, p, factor in zip(weights, points, factors, strict=True):
        w.lerp_(p, factor)
