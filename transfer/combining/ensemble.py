"""Ensemble: the weighted mean of the probabilities of several networks.

    p(y | x) = sum_m a_m p_m(y | x),  a >= 0,  sum a = 1        p_m (n, C)

    uniform  a_m = 1 / M
    greedy   Caruana's selection: from nothing, `n_rounds` times the candidate joins, with replacement, whose joining is
             best on val; a_m is how often m is in. The best round counts, so val is never below the best candidate.

Caruana et al., ICML 2004. By Jensen's inequality the log-loss of the mean is at most the mean of the log-losses.

Cost: greedy M n_rounds evaluations of stored predictions; inference as of all members together.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


class Ensemble(NamedTuple):
    weights: NDArray[np.float64]  # (M,)
    probabilities: NDArray[np.float64]  # (n, C) on val
    value: float  # on val


def combine(
    candidates: Sequence[Floats], evaluate: Callable[[Floats], float],
    *, kind: Literal["greedy", "uniform"] = "greedy", n_rounds: int = 50,
) -> Ensemble:  # fmt: skip
    if not candidates:
        raise ValueError("an ensemble needs at least one candidate")
    if n_rounds < 1:
        raise ValueError(f"need at least one round, got {n_rounds}")
    every = np.stack([np.asarray(c, np.float64) for c in candidates])  # (M, n, C)
    counts = np.ones(len(every), np.int64) if kind == "uniform" else _select(every, evaluate, n_rounds)
    weights = counts / counts.sum()
    probabilities = np.tensordot(weights, every, axes=1)
    return Ensemble(weights, probabilities, evaluate(probabilities))


def _select(every: NDArray[np.float64], evaluate: Callable[[Floats], float], n_rounds: int) -> NDArray[np.int64]:
    """How often each candidate is in at the best round; of equal rounds the earliest, of equal candidates the first."""
    counts, total = np.zeros(len(every), np.int64), np.zeros_like(every[0])
    best, best_counts = -np.inf, counts
    for n_before in range(n_rounds):
        values = [evaluate((total + one) / (n_before + 1)) for one in every]
        place = int(np.argmax(values))
        counts = counts + (np.arange(len(every)) == place)
        total = total + every[place]
        if values[place] > best:
            best, best_counts = values[place], counts
    return best_counts
