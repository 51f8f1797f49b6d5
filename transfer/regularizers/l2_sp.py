"""L2-SP: R = alpha/2 ||w_S - w0_S||^2 + beta/2 ||w_N||^2, a pull towards the starting point.

w_S, w0_S   the weights that came from the source, and what they were as loaded: a copy that nothing trains
w_N         new weights, mostly the head's: they have no starting point and decay towards zero
scope       "kernels": the weights of convolutions and fully connected layers; "all": biases and affine pairs as well

A plain sum over elements, added once per step; the gradient is alpha (w - w0), nothing at the start. With SGD it is
part of the loss, where momentum sees it. Under AdamW it acts beside the gradient, w <- w - lr alpha (w - w0): through
the loss the preconditioner would rescale it. alpha = 0 is plain fine-tuning, w0 = 0 weight decay.

Li, Grandvalet, Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018.
Their code penalises kernels alone. Where public implementations differ: some take in every weight, batch norm's affine
pair too (scope "all"); one sums norms that are not squared, head included, which is a group lasso over layers and not
this; one adds the penalty to an optimizer that decays weights towards zero as well. "alpha beta = 0.01" in the
paper's text is beta here. Under batch norm, kernels are free of scale, so that part of the effect is one on the
effective learning rate (Li et al. 2020).

Cost: one pass over the weights per step, under 1 % of its operations, and one copy of the weights.
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
DECAYS_NEW = "beta"
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
