"""L2-SP: R = alpha/2 ||w_S - w0_S||^2 + beta/2 ||w_N||^2, a pull towards the starting point.

w0 are the source's weights as loaded; new weights (the head) have none and decay towards zero. Under AdamW the pull is
decoupled, w <- w - lr alpha (w - w0): through the loss it would be rescaled by the preconditioner.
Li, Grandvalet, Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import Choice, FloatRange
from transfer.penalties import half_squared_distance, pull
from transfer.step import PartState, Step, Weights

SPACE = {
    "alpha": FloatRange(low=1e-4, high=1.0, log=True, default=1e-2),
    "beta": FloatRange(low=1e-4, high=1e-1, log=True, default=1e-2),
    "scope": Choice(options=("kernels", "all"), default="kernels"),
}
NEEDS = ("start",)
SEARCHED = True


def loss(step: Step, *, alpha: float, beta: float, scope: str) -> Tensor:  # ()
    if step.weights.decoupled:
        return torch.zeros(())
    _, shared, start = step.weights.shared(scope)
    _, new = step.weights.new(scope)
    return alpha * half_squared_distance(shared, start) + beta * half_squared_distance(new)


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, alpha: float, beta: float, scope: str,
) -> None:  # fmt: skip
    if weights.decoupled:
        names, shared, points = weights.shared(scope)
        pull(shared, points, [lr[n] * alpha for n in names])
        names, new = weights.new(scope)
        pull(new, None, [lr[n] * beta for n in names])
