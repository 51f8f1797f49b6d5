"""When should a search hand back its winner rather than the best anchor, and an ensemble rather than the winner?

A search in miniature, repeated: 20 random recipes (multinomial regressions with strengths and pixel subsets drawn at
random) on handwritten digits, beside one anchor, ranked by log-loss on n val items. The anchor is good (all pixels, the
best of five strengths on val, as the linear probe has it), so that a search can mostly do harm, or it underfits, a
little or much, so that there is something to gain. Points of test accuracy over always handing back the anchor, mean
over repetitions and worst tenth, by how many errors the winner's edge must exceed; and of ensembles of the best three
over the best single. Not part of `make bench`: `python -m benchmarks trust`.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from benchmarks.small_val import Candidate, drawn
from benchmarks.table import Figure
from transfer.edges import paired_edge
from transfer.election import ballot

Floats = NDArray[np.float64]
N_VAL = (30, 50, 100, 300)
N_ERRORS = (0.0, 0.5, 1.0, 1.5, 2.0)
ANCHORS = {"good": (1e-3, 1e-2, 0.1, 1.0, 10.0), "middling": (0.1,), "poor": (1e-3,)}  # strengths
N_CANDIDATES, N_REPEATS, N_KEPT = 20, 50, 3


def measure() -> list[Figure]:
    digits = load_digits()
    x, y = digits.data / 16, digits.target
    figures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # sixty steps rank candidates as well as a thousand
        for kind, strengths in ANCHORS.items():
            for n_val in N_VAL:
                found = [_repeat(x, y, n_val, strengths, seed) for seed in range(N_REPEATS)]
                for place, n_errors in enumerate(N_ERRORS):
                    figures += _figures(
                        f"{kind} anchor, {n_val} val, {n_errors:g} errors", [f[0][place] for f in found]
                    )
                if kind == "good":
                    figures += _figures(f"{n_val} val, ensemble by the rule", [f[1] for f in found])
                    figures += _figures(f"{n_val} val, ensemble whatever val says", [f[2] for f in found])
    return figures


def _figures(name: str, gains: list[float]) -> list[Figure]:
    worst = np.sort(gains)[: max(1, len(gains) // 10)]
    return [
        Figure(f"{name}: mean", 100 * float(np.mean(gains)), "points"),
        Figure(f"{name}: worst tenth", 100 * float(np.mean(worst)), "points"),
    ]


def _repeat(
    x: Floats, y: NDArray[np.int64], n_val: int, strengths: tuple[float, ...], seed: int
) -> tuple[list[float], float, float]:
    """Gains on test: over the anchor by number of errors; of an ensemble over the best single, by the rule and not."""
    candidates, _, train, val, test = drawn(y, n_val, seed, N_CANDIDATES)

    def seen(candidate: Candidate) -> tuple[Floats, Floats]:
        fitted = candidate.fit(x[train], y[train])
        p_val, p_test = (candidate.probabilities(fitted, x[rows]) for rows in (val, test))
        return np.log(np.clip(p_val, 1e-12, 1)), p_test

    def hits(probabilities: Floats) -> float:
        return float(np.mean(probabilities.argmax(1) == y[test]))

    def on_val(one: tuple[Floats, Floats]) -> float:
        return float(one[0][np.arange(n_val), y[val]].mean())

    anchor = max((seen(Candidate(strength, np.arange(64))) for strength in strengths), key=on_val)
    ranked = sorted(map(seen, candidates), key=on_val, reverse=True)
    edge = paired_edge("log_loss", [ranked[0][0]], [anchor[0]], y[val])
    gain = hits(ranked[0][1]) - hits(anchor[1])
    by_errors = [gain if edge.value > k * edge.error else 0.0 for k in N_ERRORS]
    kept = ranked[:N_KEPT]
    shares, judged = ballot("log_loss", [log_p for log_p, _ in kept], kept[0][0], y[val])
    brought = hits(np.tensordot(shares, np.stack([p for _, p in kept]), axes=1)) - hits(kept[0][1])
    held = paired_edge("log_loss", [judged], [kept[0][0]], y[val]).holds
    return by_errors, brought if held else 0.0, brought
