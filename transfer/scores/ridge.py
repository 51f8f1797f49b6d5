"""Leave-one-out accuracy of a ridge classifier: what a linear probe gets right, in closed form.

    H = 11'/n + U diag(s^2 / (s^2 + n strength)) U',   Y^ = Y - (Y - H Y) / (1 - diag H)
    score = 1/n sum_i [y_i = argmax_c Y^_ic]

f (n, D), centred f = U diag(s) V'; Y (n, C) one-hot labels. Row i of Y^ is exactly what ridge regression with an
unpenalised intercept, fitted to the other n - 1 items, says of item i. Of 20 strengths, 1e-6 to 1e3 times the mean
variance of an axis, the one with the least squared error of Y^ is taken; the accuracy has no say in that.

Cost: one eigendecomposition of the smaller Gram matrix, O(n D min(n, D)), and 20 products of (n, r) by (r, C).
"""

import numpy as np
from numpy.typing import NDArray

from transfer.closed_form import Span, span_of

Floats = NDArray[np.float64]

STRENGTHS: Floats = np.logspace(-6, 3, 20)


def score(features: Floats, labels: NDArray[np.int64], source_probabilities: Floats | None) -> float:  # noqa: ARG001
    n = len(labels)
    if n < 3:
        raise ValueError("two items leave one to learn from, which knows one class")
    _, places = np.unique(labels, return_inverse=True)
    targets = np.eye(places.max() + 1)[places]
    span = span_of(features)
    answers = min((left_out(span, targets, float(s)) for s in STRENGTHS), key=lambda a: ((a - targets) ** 2).sum())
    return float((answers.argmax(1) == places).mean())


def left_out(span: Span, targets: Floats, strength: float) -> Floats:  # targets (n, C) -> (n, C)
    """What ridge regression on all other items says of each; `strength` in units of the mean variance of an axis."""
    n = len(targets)
    if not len(span.spread):  # items that are all alike: each gets the mean of the others
        mean_of_others: Floats = (targets.sum(0) - targets) / (n - 1)
        return mean_of_others
    axes = span.coordinates / np.sqrt(n * span.spread)  # U
    kept = span.spread / (span.spread + strength * span.spread.mean())
    fitted = targets.mean(0) + axes @ (kept[:, None] * (axes.T @ (targets - targets.mean(0))))
    leverage = 1 / n + (axes**2 * kept).sum(1)
    answers: Floats = targets - (targets - fitted) / (1 - leverage)[:, None]
    return answers
