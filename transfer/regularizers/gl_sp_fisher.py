"""GL-SP-Fisher: filters stay as wholes where the source is sensitive to them, others are freer to move.

    R = alpha sum_g s_g sqrt(sum_{j in g} F_jj (w_j - w0_j)^2) + beta/2 ||w_N||^2

g, s_g      a group of the weights w_S that came from the source, and the square root of how many they are
w_j, w0_j   the weights of a group, and what they were as loaded
w_N         new weights, mostly the head's: they decay towards zero, squared, with the 1/2
F           the diagonal of the Fisher information at w0, under the source's own head in eval mode,
                F_jj = 1/m sum_i sum_c f_c(x_i) (d log f_c(x_i) / d w_j)^2,
            once per fit and shared by trials; scaled to a mean of 1 over w_S (a declared departure: F is tiny;
            alpha means what it does in GL-SP, but its range goes on to that of L2-SP-Fisher, as most weights have
            much less than the mean). See `transfer/fisher.py`
estimate    "sampled": one class per item, drawn from f(x_i); "exact": the sum over all classes (the 64 likeliest)
on          "target": items of the job's train split, for want of the source's own data (a declared departure);
            "source": items of the source dataset
groups      "channel": the fan-in of one output channel, a row of a matrix, each element of a vector; "layer": all of a
            layer's weights together
scope       "kernels": the weights of convolutions and fully connected layers; "all": biases and affine pairs as well

A plain sum over groups of norms that are not squared, without a 1/2, added once per step. The norm is
sqrt(sum_j F_jj d_j^2 + 1e-16), less the 1e-8 that this is at d = 0. With F = 1 this is GL-SP.

proximal True   beside the optimizer's step on the rest of the loss, every group takes its proximal step
                    argmin_d 1/2 ||d - (w_g - w0_g)||^2 + t s_g sqrt(sum_j F_jj d_j^2),   t = lr alpha / (1 - m),
                d_j = (w_j - w0_j) n / (n + t s_g F_jj) with n the root of an equation per group (a few steps of
                Newton); groups come to rest at w0 exactly, but for weights with F = 0, which nothing holds. m is the
                momentum of SGD. The term that is shown is the penalty's value.
         False  the gradient through the loss; filters hover about w0. Public implementations do this.
AdamW takes the proximal step in both cases, t = lr alpha.

Li, Grandvalet, Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018. Where
public implementations differ: the authors' code loads F from a file (its estimator is not published); one of its modes
adds a constant to w0 where it should add it to F.

Cost: once, one backward pass per item (256; exact: times the classes), one item at a time; some thirty passes over the
weights per step, about a tenth of one of ResNet-18 on a CPU (not proximal: five passes), one copy of the weights and
one of F.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import Choice, FloatRange
from transfer.bench import Bench
from transfer.fisher import PREFIX, prepare_information
from transfer.penalties import block_soft_threshold, group_distance, half_squared_distance, pull, strides
from transfer.step import PartState, Step, Weights

SPACE = {
    "alpha": FloatRange(low=1e-6, high=1.0, log=True, default=1e-4),
    "beta": FloatRange(low=1e-4, high=1e-1, log=True, default=1e-2),
    "groups": Choice(options=("channel", "layer"), default="channel"),
    "scope": Choice(options=("kernels", "all"), default="kernels"),
    "estimate": Choice(options=("sampled", "exact"), default="sampled"),
    "on": Choice(options=("target", "source"), default="target"),
    "proximal": Choice(options=(True, False), default=True),
}
DECAYS_NEW = "beta"
NEEDS = ("start", "source_head")
NEEDS_BY = {"on": {"source": "source_data"}}


def prepare(
    bench: Bench,
    *, alpha: float, beta: float, groups: str, scope: str, estimate: str, on: str, proximal: bool,  # noqa: ARG001
) -> dict[str, Tensor]:  # fmt: skip
    return prepare_information(bench, estimate=estimate, on=on, scope=scope)


def loss(
    step: Step,
    *, alpha: float, beta: float, groups: str, scope: str, estimate: str, on: str, proximal: bool,  # noqa: ARG001
) -> Tensor:  # fmt: skip  # ()
    weights = step.weights
    names, shared, start = weights.shared(scope)
    _, new = weights.new(scope)
    information = [step.prepared[PREFIX + n] for n in names]
    with torch.set_grad_enabled(not (proximal or weights.decoupled)):
        away = alpha * group_distance(shared, start, information, groups=groups)
    return away if weights.decoupled else away + beta * half_squared_distance(new)


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, alpha: float, beta: float, groups: str, scope: str, estimate: str, on: str, proximal: bool,  # noqa: ARG001
) -> None:  # fmt: skip
    if proximal or weights.decoupled:
        names, shared, points = weights.shared(scope)
        information = [weights.prepared[PREFIX + n] for n in names]
        block_soft_threshold(shared, points, strides(weights, names, lr, alpha), information, groups=groups)
    if weights.decoupled:
        names, new = weights.new(scope)
        pull(new, None, [lr[n] * beta for n in names])
