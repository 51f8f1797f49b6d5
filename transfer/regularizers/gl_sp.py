"""GL-SP: R = alpha sum_g s_g ||w_g - w0_g||_2 + beta/2 ||w_N||^2, whole filters stay where they started.

g           a group of the weights w_S that came from the source; w0_g what they were as loaded
p_g, s_g    number of weights in the group, and its square root: a large group is not pulled less per weight
w_N         new weights, mostly the head's: they decay towards zero, squared, with the 1/2
groups      "channel": the fan-in of one output channel, (in, kh, kw) of a kernel (out, in, kh, kw), a row of a matrix;
            an element of a vector (scope "all") is a group of one, p_g = 1, for which this is L1-SP
            "layer": all of a layer's weights together
scope       "kernels": the weights of convolutions and fully connected layers; "all": biases and affine pairs as well

A plain sum over groups of norms that are not squared, without a 1/2, added once per step. The norm is
sqrt(sum_j d_j^2 + 1e-16), less the 1e-8 that this is at d = 0, so that the penalty is nothing at the start.

proximal True   beside the optimizer's step on the rest of the loss, every group takes its proximal step
                    w_g <- w0_g + d_g max(1 - t s_g / ||d_g||, 0),   d = w - w0,   t = lr alpha / (1 - m)
                so that filters come to rest at w0 exactly, as wholes. m is the momentum of SGD: its velocity knows the
                other losses alone and carries their gradient 1 / (1 - m) times as far as one step, and so does t. The
                term that is shown is the penalty's value.
         False  the gradient through the loss; filters hover about w0. Public implementations do this.
AdamW takes the proximal step in both cases, t = lr alpha.

Li, Grandvalet, Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018. Their
equation 6 has a norm that is not squared for the head as well; text and code have the squared one. Their code
reduces the axes (kh, kw, in) of kernels laid out as (kh, kw, in, out): the same groups as here; its mode 50 is "layer".

Cost: one norm per filter and three passes over the weights per step, one copy of the weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import Choice, FloatRange
from transfer.penalties import block_soft_threshold, group_distance, half_squared_distance, pull, strides
from transfer.step import PartState, Step, Weights

SPACE = {
    "alpha": FloatRange(low=1e-6, high=1e-2, log=True, default=1e-4),
    "beta": FloatRange(low=1e-4, high=1e-1, log=True, default=1e-2),
    "groups": Choice(options=("channel", "layer"), default="channel"),
    "scope": Choice(options=("kernels", "all"), default="kernels"),
    "proximal": Choice(options=(True, False), default=True),
}
DECAYS_NEW = "beta"
NEEDS = ("start",)


def loss(step: Step, *, alpha: float, beta: float, groups: str, scope: str, proximal: bool) -> Tensor:  # ()
    weights = step.weights
    _, shared, start = weights.shared(scope)
    _, new = weights.new(scope)
    with torch.set_grad_enabled(not (proximal or weights.decoupled)):
        away = alpha * group_distance(shared, start, groups=groups)
    return away if weights.decoupled else away + beta * half_squared_distance(new)


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, alpha: float, beta: float, groups: str, scope: str, proximal: bool,
) -> None:  # fmt: skip
    if proximal or weights.decoupled:
        names, shared, points = weights.shared(scope)
        block_soft_threshold(shared, points, strides(weights, names, lr, alpha), groups=groups)
    if weights.decoupled:
        names, new = weights.new(scope)
        pull(new, None, [lr[n] * beta for n in names])
