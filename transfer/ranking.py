"""Ranking sources without training: every score of every candidate, and the order that the scores agree on."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from transfer import scores


class Candidate(NamedTuple):
    """What one source makes of the target's items; the labels are the same for all candidates."""

    features: NDArray[np.float64]  # (n, D)
    labels: NDArray[np.int64]  # (n,)
    source_probabilities: NDArray[np.float64] | None = None  # (n, Cs); None: the source has no head

    def first(self, n: int) -> "Candidate":
        """The same of the first `n` items alone."""
        said = self.source_probabilities
        return Candidate(self.features[:n], self.labels[:n], None if said is None else said[:n])


class Ranking(NamedTuple):
    scores: dict[str, dict[str, float]]  # source -> score -> value; without those that it cannot have
    mean_rank: dict[str, float]  # source -> mean of its ranks, 1 is best
    order: tuple[str, ...]  # the best source first
    counted: tuple[str, ...]  # the scores that the order rests on


def rank(
    candidates: Mapping[str, Candidate], names: tuple[str, ...] | None = None,
    known: Mapping[str, Mapping[str, float]] | None = None,
) -> Ranking:  # fmt: skip
    """Score every candidate and order them by their mean rank; equals share the mean of their places.

    `known` are further votes, by source, that no look at the features gives, such as what a source is worth elsewhere.
    A score that some candidate cannot have is reported but not counted: means over different scores do not compare.
    No score is right everywhere (Agostinelli et al. 2022), so this orders candidates, it does not choose one.
    """
    chosen = scores.names() if names is None else names
    further = {ref: dict((known or {}).get(ref, {})) for ref in candidates}
    found = {ref: _scores_of(candidate, chosen) | further[ref] for ref, candidate in candidates.items()}
    votes = dict.fromkeys([*chosen, *(name for values in further.values() for name in values)])
    counted = tuple(name for name in votes if all(name in values for values in found.values()))
    ranks = dict.fromkeys(found, 1.0)
    if counted and found:
        table = np.array([[values[name] for name in counted] for values in found.values()])  # (refs, scores)
        ranks = dict(zip(found, rankdata(-table, axis=0).mean(1).tolist(), strict=True))
    return Ranking(found, ranks, tuple(sorted(ranks, key=lambda ref: (ranks[ref], ref))), counted)


def _scores_of(candidate: Candidate, names: tuple[str, ...]) -> dict[str, float]:
    n = len(candidate.labels)
    if len(candidate.features) != n:
        raise ValueError(f"{len(candidate.features)} rows of features and {n} labels")
    if not np.isfinite(candidate.features).all():
        raise ValueError("features are not finite")
    headless = candidate.source_probabilities is None
    found = {
        name: scores.load(name).score(*candidate) for name in names
        if not (headless and "source_head" in scores.needs(name))
    }  # fmt: skip
    return {name: value for name, value in found.items() if np.isfinite(value)}  # nan: it says nothing here
