"""What is measured of searches: regret over a budget, ranks, time to reach a value, areas, paired differences.

Losses: smaller is better. An incumbent is the best that a search has found so far; it changes at some times and holds
in between. Everything here takes plain numbers and arrays.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Incumbents = Sequence[tuple[float, float]]  # (time or cost, loss) whenever the incumbent changes, in order

N_DRAWS = 2000


class Span(NamedTuple):
    """A mean and a bootstrap interval of it."""

    mean: float
    low: float
    high: float


def incumbents(told: Incumbents) -> list[tuple[float, float]]:
    """Only what is better than everything before."""
    kept: list[tuple[float, float]] = []
    for at, loss in sorted(told):
        if math.isfinite(loss) and (not kept or loss < kept[-1][1]):
            kept.append((at, loss))
    return kept


def loss_at(found: Incumbents, at: float, before: float) -> float:
    """The incumbent's loss at a time; `before` the first one there is none."""
    known = [loss for when, loss in found if when <= at]
    return known[-1] if known else before


def time_to_reach(found: Incumbents, loss: float, budget: float) -> float:
    """The first time at which the incumbent is as good as `loss`; never counts as the whole budget."""
    return next((at for at, own in found if own <= loss and at <= budget), budget)


def area(found: Incumbents, budget: float, before: float) -> float:
    """Mean over [0, budget] of the incumbent's loss: the area under the anytime curve, in units of the loss."""
    total, since, loss = 0.0, 0.0, before
    for at, better in found:
        if at >= budget:
            break
        total, since, loss = total + (at - since) * loss, at, better
    return (total + (budget - since) * loss) / budget


def normalised(loss: float, best: float, usual: float) -> float:
    """Regret (loss - best) / (usual - best): 0 is the optimum, 1 what the median random recipe is worth."""
    return (loss - best) / (usual - best)


def span(values: Sequence[float] | Floats, *, seed: int = 0, level: float = 0.95) -> Span:
    """Percentile bootstrap interval of the mean."""
    sample = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, sample.size, size=(N_DRAWS, sample.size))
    tail = (1 - level) / 2
    low, high = np.quantile(sample[picks].mean(1), [tail, 1 - tail])
    return Span(float(sample.mean()), float(low), float(high))


def paired_span(differences: Sequence[Floats], *, seed: int = 0, level: float = 0.95) -> Span:
    """The mean over pairs of the mean difference over a pair's items, and its bootstrap interval.

    `differences`: per pair (dataset, seed), item by item, 1 where only ours is right, -1 where only the other is. Items
    are drawn anew within each pair, so the pairs stand for themselves and no others. As in `transfer.evaluate`, a draw
    of items depends only on how often each distinct value is drawn.
    """
    rng = np.random.default_rng(seed)
    draws = np.zeros(N_DRAWS)
    for pair in differences:
        values, counts = np.unique(pair, return_counts=True)
        draws += rng.multinomial(len(pair), counts / len(pair), size=N_DRAWS) @ values / len(pair)
    tail = (1 - level) / 2
    low, high = np.quantile(draws / len(differences), [tail, 1 - tail])
    return Span(float(np.mean([pair.mean() for pair in differences])), float(low), float(high))


def mean_ranks(losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Rank of each contender, 1 the best, ties shared, averaged over the columns."""
    table = np.array(list(losses.values()))  # (contenders, columns)
    return dict(zip(losses, rankdata(table, axis=0).mean(1).tolist(), strict=True))


def wins(losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Share of the columns in which a contender is the best; a tie is shared out."""
    table = np.array(list(losses.values()))
    best = table == table.min(0)
    return dict(zip(losses, (best / best.sum(0)).mean(1).tolist(), strict=True))
