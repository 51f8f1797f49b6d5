"""Is one classifier better than another, or luckier? A paired edge on the items that ranked them, with its error.

    accuracy, log_loss     d_i = s_i(ours) - s_i(theirs)   s_i = 1 where right, or log p(y_i)       larger is better
                           edge = mean d,  error = std(d) / sqrt(n)
    any other objective    edge = f(ours) - f(theirs),  error = its spread over N_DRAWS resamples of the items

Log-losses are those of calibrated probabilities, each with the temperature of its own predictions
(`evaluate.calibration_temperature`): what is handed back is calibrated, and over- or underconfidence, which the mean of
several networks always brings, decides nothing.

A recipe trained with several seeds counts as their mean: s_i is the mean over seeds, so that no lucky seed speaks for
it. The edge *holds* if it exceeds N_ERRORS times its error: the one-standard-error rule (Breiman et al., Classification
and Regression Trees, 1984, section 3.4.3), applied to the difference, whose error is that of paired items.
docs/decisions/0009-what-a-job-hands-back.md has the measurements behind N_ERRORS.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from domain.job import SMALLER_IS_BETTER
from transfer import evaluate
from transfer.evaluate import Floats, Ints

N_ERRORS = 1.0
N_DRAWS = 200  # an error needs fewer draws than the ends of an interval


class Edge(NamedTuple):
    value: float  # positive: ours is better
    error: float  # its standard error

    @property
    def holds(self) -> bool:
        """Written so that a NaN does not hold."""
        return self.value > N_ERRORS * self.error


def paired_edge(
    objective: str, ours: Sequence[Floats], theirs: Sequence[Floats], targets: Ints, *, seed: int = 0
) -> Edge:
    """The edge of `ours` over `theirs`: logits (n, C) of the same items, one array per seed of the recipe."""
    if objective in ("accuracy", "log_loss"):
        difference = _scores(objective, ours, targets) - _scores(objective, theirs, targets)
        n = len(difference)
        error = float(difference.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf
        return Edge(float(difference.mean()), error)
    rng, n = np.random.default_rng(seed), len(targets)
    drawn = [_gap(objective, ours, theirs, targets, rng.integers(n, size=n)) for _ in range(N_DRAWS)]
    return Edge(_gap(objective, ours, theirs, targets, np.arange(n)), float(np.nanstd(drawn, ddof=1)))


def measure(objective: str, logits: Floats, targets: Ints) -> float:
    """One objective of predictions, without the others."""
    return float(getattr(evaluate, objective)(logits, targets))


def calibrated(logits: Floats, targets: Ints) -> Floats:
    """The logits over the temperature that suits them on these items."""
    found: Floats = logits / evaluate.calibration_temperature(logits, targets)
    return found


def _scores(objective: str, seeds: Sequence[Floats], targets: Ints) -> Floats:
    """(n,) of what each item contributes, the mean over seeds."""
    if objective == "accuracy":
        each = [evaluate.correct(logits, targets) for logits in seeds]
    else:
        rows = np.arange(len(targets))
        each = [evaluate.log_softmax(calibrated(logits, targets))[rows, targets] for logits in seeds]
    scores: Floats = np.mean(each, axis=0)
    return scores


def _gap(objective: str, ours: Sequence[Floats], theirs: Sequence[Floats], targets: Ints, rows: Ints) -> float:
    def mean(seeds: Sequence[Floats]) -> float:
        return float(np.mean([measure(objective, logits[rows], targets[rows]) for logits in seeds]))

    gap = mean(ours) - mean(theirs)
    return -gap if objective in SMALLER_IS_BETTER else gap
