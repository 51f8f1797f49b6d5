"""Weight decay: R = alpha/2 ||w_S||^2 + beta/2 ||w_N||^2, towards zero.

w_S     the weights that came from the source       alpha   their strength
w_N     new weights, mostly the head's              beta    theirs
scope   "kernels": the weights of convolutions and fully connected layers; "all": biases and affine pairs as well

A plain sum over elements, added once per step, divided neither by the batch nor by the number of weights. Running
statistics are no weights. With SGD it is part of the loss, momentum sees it, and the trajectory is that of
`torch.optim.SGD(weight_decay=...)`; under AdamW it acts beside the gradient, w <- w - lr alpha w, for the
preconditioner would rescale it (Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019). The optimizers
have no decay of their own that would count it twice.

Public implementations mostly give one `weight_decay` to everything, affine pairs and biases included (scope "all",
alpha = beta). Li et al. 2018 decay kernels alone, in their script those of the head ten times as strongly.

Cost: one pass over the weights per step.
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
DECAYS_NEW = "beta"
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
