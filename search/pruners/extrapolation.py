"""Stops a trial that will hardly beat the best finished one, by extrapolating its learning curve.

Two families of curves, t the part of the fit that is over, smaller y better (Domhan et al. 2015, IJCAI, pow3 and a
saturating exponential; their ensemble is fitted by MCMC, this one by least squares):

    y(t) = a + b t^-c              power law        c in 0.1 ... 3
    y(t) = a + b exp(-c t)         saturation       c in 0.5 ... 30          b >= 0

For a given c both are linear in (a, b): x = (1, phi_c(t)). Least squares on n points leaves the residual variance s^2
with n - 2 degrees of freedom, and at the end of the fit the prediction is Student's t around m = x_1 (a, b):

    sd^2 = s^2 (1 + x_1' (X'X)^-1 x_1)          P_c = F_{n-2}((y* - m) / sd)

The probabilities to get below y*, the best trial's loss there, are averaged over both families and all c with weights
s^-n, their profile likelihoods. The trial is stopped when the average is below 5 %, and never once it has been there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from search.fits import fit_at_hand
from search.tracks import Pruner, Track, best_complete

LOWEST_P = 0.05
MIN_POINTS = 5  # evaluations, of which three parameters take their share
MIN_PART = 0.25  # of the fit: a warm-up says little
Values = NDArray[np.float64]
POWERS = np.geomspace(0.1, 3.0, 12)
RATES = np.geomspace(0.5, 30.0, 12)


class Extrapolation:
    def stops(self, track: Track, others: Sequence[Track], /) -> bool:
        found, best = fit_at_hand(track), best_complete(others)
        if found is None or best is None:
            return False
        fit, own = found
        target = best.value if track.n_folds == 1 else best.grid.get(fit.end)
        if target is None or len(own) < MIN_POINTS or own[-1][0] < MIN_PART:
            return False
        parts, losses = (np.array(column) for column in zip(*own, strict=True))
        return bool(losses.min() >= target and chance_below(target, parts, losses) < LOWEST_P)


def chance_below(target: float, parts: Values, losses: Values) -> float:
    """The probability that the curve through (parts, losses) ends below `target` at part 1."""
    families = [(parts**-c, 1.0) for c in POWERS] + [(np.exp(-c * parts), float(np.exp(-c))) for c in RATES]
    fitted = [_predict(phi, at_end, losses) for phi, at_end in families]
    means, deviations, residuals = (np.array(column) for column in zip(*fitted, strict=True))
    log_weights = -len(losses) * np.log(residuals)
    weights = np.exp(log_weights - log_weights.max())
    chances: Any = stdtr(len(losses) - 2, (target - means) / deviations)
    return float((weights * chances).sum() / weights.sum())


def _predict(phi: Values, at_end: float, losses: Values) -> tuple[float, float, float]:
    """Mean and deviation of the prediction at the end, and the residual deviation s, of y = a + b phi with b >= 0."""
    centred = phi - phi.mean()
    spread = float(centred @ centred)
    slope = max(0.0, float(centred @ losses) / spread)
    left = losses - losses.mean() - slope * centred
    # A curve without noise would make the extrapolation certain, which it never is.
    floor = 1e-3 * max(float(np.ptp(losses)), 1e-3 * float(np.abs(losses).max()), 1e-9)
    residual = max(float(np.sqrt(left @ left / (len(losses) - 2))), floor)
    away = at_end - float(phi.mean())
    deviation = residual * float(np.sqrt(1 + 1 / len(losses) + away**2 / spread))
    return float(losses.mean()) + slope * away, deviation, residual


def build() -> Pruner:
    return Extrapolation()
