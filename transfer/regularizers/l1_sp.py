"""L1-SP: R = alpha ||w_S - w0_S||_1 + beta/2 ||w_N||^2, most weights stay exactly where they started.

w_S, w0_S   the weights that came from the source, and what they were as loaded
w_N         new weights, mostly the head's: they decay towards zero, squared, with the 1/2
scope       "kernels": the weights of convolutions and fully connected layers; "all": biases and affine pairs as well

A plain sum of absolute values without a 1/2, added once per step. Every weight is pulled by alpha however near it is,
where L2-SP pulls by alpha |w - w0|: useful alphas are much smaller here.

proximal True   beside the optimizer's step on the rest of the loss, every weight takes its proximal step
                    w <- w0 + sign(w - w0) max(|w - w0| - t, 0),   t = lr alpha / (1 - m)
                so that weights come to rest at w0 exactly. m is the momentum of SGD: its velocity knows the other
                losses alone and carries their gradient 1 / (1 - m) times as far as one step, and so does t. The point
                of rest is that of the sum of the losses: |gradient| <= alpha where w = w0, and gradient =
                -alpha sign(w - w0) elsewhere. The term that is shown is the penalty's value.
         False  the subgradient through the loss, sign(0) = 0; momentum sees it. Weights hover about w0 at a distance of
                about lr alpha / (1 - m) and never rest on it: public implementations do this.
AdamW takes the proximal step in both cases, t = lr alpha: the preconditioner turns sign(w - w0) into something else.

Li, Grandvalet, Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018. Their
code takes |x| or sqrt(x^2 + 1e-16), through the loss.

Cost: two passes over the weights per step, one copy of the weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import Choice, FloatRange
from transfer.penalties import absolute_distance, half_squared_distance, pull, soft_threshold, strides
from transfer.step import PartState, Step, Weights

SPACE = {
    "alpha": FloatRange(low=1e-6, high=1e-2, log=True, default=1e-4),
    "beta": FloatRange(low=1e-4, high=1e-1, log=True, default=1e-2),
    "scope": Choice(options=("kernels", "all"), default="kernels"),
    "proximal": Choice(options=(True, False), default=True),
}
DECAYS_NEW = "beta"
NEEDS = ("start",)


def loss(step: Step, *, alpha: float, beta: float, scope: str, proximal: bool) -> Tensor:  # ()
    weights = step.weights
    _, shared, start = weights.shared(scope)
    _, new = weights.new(scope)
    with torch.set_grad_enabled(not (proximal or weights.decoupled)):
        away = alpha * absolute_distance(shared, start)
    return away if weights.decoupled else away + beta * half_squared_distance(new)


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, alpha: float, beta: float, scope: str, proximal: bool,
) -> None:  # fmt: skip
    if proximal or weights.decoupled:
        names, shared, points = weights.shared(scope)
        soft_threshold(shared, points, strides(weights, names, lr, alpha))
    if weights.decoupled:
        names, new = weights.new(scope)
        pull(new, None, [lr[n] * beta for n in names])
