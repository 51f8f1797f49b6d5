"""LogME: the largest evidence of a Bayesian linear regression from features to one-against-rest labels, per item.

    w ~ N(0, I / alpha),  y | F, w ~ N(F w, I / beta),  y in {0, 1} for each class in turn
    log p(y | F) = n/2 log beta + D/2 log alpha - n/2 log 2 pi - beta/2 ||F m - y||^2 - alpha/2 ||m||^2 - 1/2 log |A|
    A = alpha I + beta F'F (D, D),  m = beta A^-1 F'y (D,),  F (n, D)

maximised over alpha and beta by MacKay's fixed point, then divided by n and averaged over the classes:

    gamma = sum_i beta s_i / (alpha + beta s_i),  alpha <- gamma / ||m||^2,  beta <- (n - gamma) / ||F m - y||^2

With F'F = V diag(s) V', z = U'y and e = ||y||^2 - ||z||^2 everything depends on t = alpha / beta alone, which is what
is iterated, for all classes at once. You et al., ICML 2021 (fixed point: You et al., JMLR 2022).

The authors start at alpha = beta = 1 and stop at 1e-3 or after 11 steps; here the start follows the scale of the
features, so that the score does not change with it, and the fixed point is run to convergence. Features are not
centred and there is no intercept, as there.

Cost: one eigendecomposition of the smaller Gram matrix, O(n D min(n, D)).
"""

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_STEPS = 1000
TOLERANCE = 1e-9  # relative, of t
WIDEST = 1e12  # t / max(s) stays within 1 / WIDEST .. WIDEST: without signal the optimum lies at infinity


def score(features: Floats, labels: NDArray[np.int64], source_probabilities: Floats | None) -> float:  # noqa: ARG001
    targets = (labels[:, None] == np.unique(labels)[None]).astype(np.float64)  # (n, C)
    return float(log_evidence(features, targets).mean() / len(labels))


def log_evidence(features: Floats, targets: Floats) -> Floats:  # (n, D), (n, C) -> (C,)
    """The largest log-evidence of each column of `targets`."""
    n = len(features)
    s, z = _spectrum(features, targets)
    if not len(s):
        return _profile(np.ones((0, 1)), np.zeros((0, targets.shape[1])), (targets**2).sum(0), np.ones(1), n)
    s, z2 = s[:, None], z**2  # (r, 1), (r, C)
    rest = np.maximum((targets**2).sum(0) - z2.sum(0), 0.0)
    low, high = s.max() / WIDEST, s.max() * WIDEST
    t = np.full(targets.shape[1], s.mean())
    for _ in range(MAX_STEPS):
        gamma = (s / (s + t)).sum(0)
        length = (s * z2 / (s + t) ** 2).sum(0)  # ||m||^2
        residual = ((t / (s + t)) ** 2 * z2).sum(0) + rest  # ||F m - y||^2
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            new = np.clip(np.nan_to_num(gamma * residual / (length * (n - gamma)), nan=low, posinf=high), low, high)
        done = np.all(np.abs(new - t) <= TOLERANCE * t)
        t = new
        if done:
            break
    return _profile(s, z2, rest, t, n)


def _profile(s: Floats, z2: Floats, rest: Floats, t: Floats, n: int) -> Floats:
    """The log-evidence at t = alpha / beta and the beta that is best for it, n / (sum t z^2 / (s + t) + e)."""
    misfit = np.maximum((t * z2 / (s + t)).sum(0) + rest, np.finfo(np.float64).tiny)
    found: Floats = -n / 2 * (np.log(2 * np.pi) + 1 + np.log(misfit / n)) - np.log1p(s / t).sum(0) / 2
    return found


def _spectrum(features: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Squared singular values (r,) of the features, and the targets in their left singular vectors (r, C)."""
    n, width = features.shape
    wide = width > n
    values, vectors = scipy.linalg.eigh(features @ features.T if wide else features.T @ features)
    kept = values > max(values[-1], 0.0) * max(n, width) * np.finfo(np.float64).eps
    values, vectors = values[kept], vectors[:, kept]
    left = vectors if wide else features @ vectors / np.sqrt(values)
    return values, left.T @ targets
