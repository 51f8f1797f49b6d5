"""Multinomial logistic regression on fixed features, for every strength of its penalty at once.

    min over W, b of  1/n sum_i CE(y_i, softmax(W x_i + b)) + strength / 2 ||W||^2        (b is not penalised)

which is scikit-learn's LogisticRegression with C = 1 / (n strength). Symbols: n items, D features, C classes,
r <= min(n, D). Any optimum lies in the span of the centred features, so the problem is solved, exactly, in their r
principal coordinates, each scaled by the root of an estimate of its curvature: L-BFGS then takes few steps even for the
weakest penalties.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]

STRENGTHS: Floats = np.logspace(-6, 5, 45)
MAX_ITERATIONS = 2000


class Linear(NamedTuple):
    weight: Floats  # (C, D)
    bias: Floats  # (C,)


class Span(NamedTuple):
    """Centred features in principal coordinates."""

    mean: Floats  # (D,)
    axes: Floats  # (D, r), orthonormal
    coordinates: Floats  # (n, r)
    spread: Floats  # (r,) variance along each axis


def span_of(features: Floats) -> Span:  # (n, D)
    """Principal coordinates, from the smaller of the two Gram matrices."""
    n, width = features.shape
    mean = features.mean(0)
    centred = features - mean
    gram = centred.T @ centred if width <= n else centred @ centred.T
    values, vectors = scipy.linalg.eigh(gram, check_finite=True)
    kept = values > values[-1] * max(n, width) * np.finfo(np.float64).eps if values[-1] > 0 else values > 0
    values, vectors = values[kept], vectors[:, kept]
    if width <= n:
        return Span(mean, vectors, centred @ vectors, values / n)
    axes = centred.T @ (vectors / np.sqrt(values))
    return Span(mean, axes, vectors * np.sqrt(values), values / n)


def solve_path(
    features: Floats, targets: NDArray[np.int64], n_classes: int, strengths: Floats = STRENGTHS,
    *, tolerance: float = 1e-6,
) -> list[Linear]:  # fmt: skip
    """The optimum for each strength, in their order; solved from strong to weak, each from the last one's answer."""
    span = span_of(features)
    guess = np.zeros((n_classes, len(span.spread) + 1))
    guess[:, -1] = np.log(np.bincount(targets, minlength=n_classes) / len(targets) + 1e-9)
    answers: dict[int, Linear] = {}
    for index in np.argsort(-strengths):
        guess = _solve(span, targets, float(strengths[index]), guess, tolerance)
        weight = guess[:, :-1] @ span.axes.T
        answers[int(index)] = Linear(weight, guess[:, -1] - weight @ span.mean)
    return [answers[i] for i in range(len(strengths))]


def _solve(span: Span, targets: NDArray[np.int64], strength: float, guess: Floats, tolerance: float) -> Floats:
    """Weights in principal coordinates and bias, (C, r + 1), starting from `guess`."""
    n, n_classes = len(targets), len(guess)
    scale = np.append(1 / np.sqrt(span.spread / 4 + strength), 2.0)  # curvature of CE is at most 1/4 of the variance
    design = np.column_stack([span.coordinates, np.ones(n)]) * scale
    damping = np.append(strength * scale[:-1] ** 2, 0.0)
    rows = np.arange(n)

    def value_and_gradient(flat: Floats) -> tuple[float, Floats]:
        u = flat.reshape(n_classes, -1)
        logits = design @ u.T
        logits -= logits.max(1, keepdims=True)
        own = logits[rows, targets].copy()
        np.exp(logits, out=logits)
        total = logits.sum(1, keepdims=True)
        value = float((np.log(total[:, 0]) - own).mean() + (damping * u * u).sum() / 2)
        logits /= total
        logits[rows, targets] -= 1
        gradient = logits.T @ design / n + damping * u
        return value, gradient.ravel()

    found = minimize(
        value_and_gradient, (guess / scale).ravel(), jac=True, method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": tolerance, "ftol": 0.0, "maxcor": 20},
    )  # fmt: skip
    answer: Floats = found.x.reshape(n_classes, -1) * scale
    return answer


def logits_of(answers: list[Linear], features: Floats) -> NDArray[np.float32]:  # (m, D) -> (S, m, C)
    """What each answer says of other items."""
    return np.stack([(features @ a.weight.T + a.bias).astype(np.float32) for a in answers])
