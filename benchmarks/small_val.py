"""How should a study rank its trials when val is small: by accuracy, by log-loss, or over folds?

A search in miniature, repeated: 24 candidate recipes (multinomial regressions with strengths and pixel subsets drawn at
random) on handwritten digits, n labelled items divided 70 : 30 into train and val, everything else test. Each rule
picks one candidate; what it ships is tested. Figure: points of test accuracy that a rule gives away against the best
candidate it could have shipped, mean over repetitions. Not part of `make bench`: `python -m benchmarks small_val`.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split

from benchmarks.table import Figure

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
N_VAL = (15, 30, 60, 120, 200, 300)
N_CANDIDATES, N_REPEATS, N_FOLDS = 24, 20, 3


@dataclass(frozen=True)
class Candidate:
    strength: float
    columns: NDArray[np.int64]

    def fit(self, x: Floats, y: NDArray[Any]) -> Any:
        return LogisticRegression(C=self.strength, max_iter=60).fit(x[:, self.columns], y)

    def probabilities(self, fitted: Any, x: Floats) -> Floats:
        """(N, 10); a class that was not in the training items has probability 0."""
        found = np.zeros((len(x), 10))
        found[:, fitted.classes_] = fitted.predict_proba(x[:, self.columns])
        return found


def measure() -> list[Figure]:
    digits = load_digits()
    x, y = digits.data / 16, digits.target
    figures = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # sixty steps rank candidates as well as a thousand
        for n_val in N_VAL:
            lost = np.mean([_repeat(x, y, n_val, seed) for seed in range(N_REPEATS)], axis=0)
            names = ("accuracy", "log-loss", f"log-loss over {N_FOLDS} folds", "one split in place of folds")
            figures += [
                Figure(f"{n_val} val items, {name}", 100 * float(points), "points lost")
                for name, points in zip(names, lost, strict=True)
            ]
    return figures


def drawn(
    y: NDArray[Any], n_val: int, seed: int, n_candidates: int = N_CANDIDATES
) -> tuple[list[Candidate], Rows, Rows, Rows, Rows]:
    """The candidates of a repetition, and its rows: all that are labelled, of these train and val, and test."""
    rng = np.random.default_rng([n_val, seed])
    candidates = [
        Candidate(float(10 ** rng.uniform(-5, 3)), np.flatnonzero(rng.random(64) < rng.uniform(0.2, 1.0)))
        for _ in range(n_candidates)
    ]
    rest, test = train_test_split(
        np.arange(len(y)), train_size=round(n_val / 0.3), stratify=y, random_state=int(rng.integers(1 << 31))
    )
    train, val = train_test_split(rest, test_size=n_val, stratify=y[rest], random_state=seed)
    return candidates, rest, train, val, test


def _repeat(x: Floats, y: Floats, n_val: int, seed: int) -> list[float]:
    candidates, rest, train, val, test = drawn(y, n_val, seed)
    by_accuracy, by_loss, by_folds, shipped_split, shipped_all = [], [], [], [], []
    folds = list(StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed).split(rest, y[rest]))
    for candidate in candidates:
        fitted = candidate.fit(x[train], y[train])
        p = candidate.probabilities(fitted, x[val])
        by_accuracy.append(_accuracy(p, y[val]))
        by_loss.append(-_log_loss(p, y[val]))
        left_out = np.zeros((len(rest), 10))
        for inside, outside in folds:
            part = candidate.fit(x[rest[inside]], y[rest[inside]])
            left_out[outside] = candidate.probabilities(part, x[rest[outside]])
        by_folds.append(-_log_loss(left_out, y[rest]))
        shipped_split.append(_accuracy(candidate.probabilities(fitted, x[test]), y[test]))
        closing = candidate.fit(x[rest], y[rest])
        shipped_all.append(_accuracy(candidate.probabilities(closing, x[test]), y[test]))
    one, all_of_it = max(shipped_split), max(shipped_all)
    return [
        one - shipped_split[int(np.argmax(by_accuracy))],
        one - shipped_split[int(np.argmax(by_loss))],
        all_of_it - shipped_all[int(np.argmax(by_folds))],
        all_of_it - shipped_split[int(np.argmax(by_loss))],
    ]


def _accuracy(p: Floats, y: Floats) -> float:
    return float(np.mean(p.argmax(axis=1) == y))


def _log_loss(p: Floats, y: Floats) -> float:
    return float(-np.mean(np.log(np.clip(p[np.arange(len(y)), y.astype(int)], 1e-15, 1.0))))
