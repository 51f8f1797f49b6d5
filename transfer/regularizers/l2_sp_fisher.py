"""L2-SP-Fisher: R = alpha/2 sum_j F_jj (w_j - w0_j)^2 + beta/2 ||w_N||^2, a pull where the source is sensitive.

w_j, w0_j   the weights that came from the source (w_S), and what they were as loaded
w_N         new weights, mostly the head's: they decay towards zero
F           the diagonal of the Fisher information at w0, under the source's own head in eval mode,
                F_jj = 1/m sum_i sum_c f_c(x_i) (d log f_c(x_i) / d w_j)^2,
            once per fit and shared by trials; scaled to a mean of 1 over w_S (a declared departure: F is tiny, and
            alpha keeps the range it has in L2-SP). See `transfer/fisher.py`
estimate    "sampled": one class per item, drawn from f(x_i); "exact": the sum over all classes (the 64 likeliest)
on          "target": items of the job's train split, for want of the source's own data (a declared departure);
            "source": items of the source dataset
scope       "kernels": the weights of convolutions and fully connected layers; "all": biases and affine pairs as well

A plain sum over elements, added once per step; with F = 1 this is L2-SP.

proximal True   beside the optimizer's step on the rest of the loss, every weight takes its proximal step
                    w <- w0 + (w - w0) / (1 + t F),   t = lr alpha / (1 - m),   m the momentum of SGD
                with the same point of rest as the sum of the losses. F is heavy-tailed, and a gradient step diverges
                where lr alpha F > 2 (1 + m): this cannot. The term that is shown is the penalty's value.
         False  alpha F (w - w0) through the loss; momentum sees it. Public implementations do this.
AdamW takes the proximal step in both cases, t = lr alpha.

Li, Grandvalet, Davoine, Explicit inductive bias for transfer learning with convolutional networks, ICML 2018; elastic
weight consolidation (Kirkpatrick et al. 2017) with the source as the first task. Where public implementations differ:
the authors' code loads F from a file (its estimator is not published) and adds a constant to it or clips it; others
square the gradient of a batch's mean, or take the true labels for the source's distribution.

Cost: once, one backward pass per item (256; exact: times the classes), one item at a time; two passes over the weights
per step, one copy of the weights and one of F.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import Choice, FloatRange
from transfer.bench import Bench
from transfer.fisher import PREFIX, prepare_information
from transfer.penalties import half_squared_distance, pull, pull_by_information, strides
from transfer.step import PartState, Step, Weights

SPACE = {
    "alpha": FloatRange(low=1e-4, high=1.0, log=True, default=1e-2),
    "beta": FloatRange(low=1e-4, high=1e-1, log=True, default=1e-2),
    "scope": Choice(options=("kernels", "all"), default="kernels"),
    "estimate": Choice(options=("sampled", "exact"), default="sampled"),
    "on": Choice(options=("target", "source"), default="target"),
    "proximal": Choice(options=(True, False), default=True),
}
DECAYS_NEW = "beta"
NEEDS = ("start", "source_head")
NEEDS_BY = {"on": {"source": "source_data"}}


def prepare(
    bench: Bench, *, alpha: float, beta: float, scope: str, estimate: str, on: str, proximal: bool,  # noqa: ARG001
) -> dict[str, Tensor]:  # fmt: skip
    return prepare_information(bench, estimate=estimate, on=on, scope=scope)


def loss(
    step: Step, *, alpha: float, beta: float, scope: str, estimate: str, on: str, proximal: bool,  # noqa: ARG001
) -> Tensor:  # fmt: skip  # ()
    weights = step.weights
    names, shared, start = weights.shared(scope)
    _, new = weights.new(scope)
    with torch.set_grad_enabled(not (proximal or weights.decoupled)):
        away = alpha * half_squared_distance(shared, start, [step.prepared[PREFIX + n] for n in names])
    return away if weights.decoupled else away + beta * half_squared_distance(new)


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, alpha: float, beta: float, scope: str, estimate: str, on: str, proximal: bool,  # noqa: ARG001
) -> None:  # fmt: skip
    if proximal or weights.decoupled:
        names, shared, points = weights.shared(scope)
        information = [weights.prepared[PREFIX + n] for n in names]
        pull_by_information(shared, points, information, strides(weights, names, lr, alpha))
    if weights.decoupled:
        names, new = weights.new(scope)
        pull(new, None, [lr[n] * beta for n in names])
