"""Weight decay: R = alpha/2 ||w_S||^2 + beta/2 ||w_N||^2, towards zero.

w_S are the weights that came from the source, w_N the new ones (the head). With SGD the trajectory is that of
`weight_decay`; under AdamW the decay is decoupled from the gradient (Loshchilov & Hutter 2019).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import Choice, FloatRange
from transfer.penalties import half_squared_distance, pull
from transfer.step import PartState, Step, Weights

SPACE = {
    "alpha": FloatRange(low=1e-6, high=1e-2, log=True, default=1e-4),
    "beta": FloatRange(low=1e-5, high=1e-1, log=True, default=1e-2),
    "scope": Choice(options=("kernels", "all"), default="kernels"),
}
SEARCHED = True


def loss(step: Step, *, alpha: float, beta: float, scope: str) -> Tensor:  # ()
    if step.weights.decoupled:
        return torch.zeros(())
    _, shared, _ = step.weights.shared(scope)
    _, new = step.weights.new(scope)
    return alpha * half_squared_distance(shared) + beta * half_squared_distance(new)


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, alpha: float, beta: float, scope: str,
) -> None:  # fmt: skip
    if weights.decoupled:
        names, shared, _ = weights.shared(scope)
        pull(shared, None, [lr[n] * alpha for n in names])
        names, new = weights.new(scope)
        pull(new, None, [lr[n] * beta for n in names])
