"""Which recipes of past jobs a new job tries first: a small portfolio that together does best on the jobs most like it.

    distance   d(a, b) = sqrt(mean over the meta-features f that both have of ((a_f - b_f) / SPREAD_f)^2)
    weight     w_j = exp(-d(present, j))          of past job j
    worth      s_j(t) = max(0, (v_t - a_j) / (b_j - a_j))      of trial t in job j, in [0, 1]
    estimate   s_j(r) = s_j(t) exp(-D(r, t)^2 / 2 WIDTH^2)      of any recipe r, t the trial of j nearest to r

v_t is the trial's value, b_j the best value and a_j that of the best anchor (without anchors the median), all turned so
that larger is better: a recipe that does not beat the anchors, which run anyway, is worth nothing. D is the root of the
mean squared difference of the searched values, each on its axis of the present space from 0 to 1. A portfolio R covers

    cover(R) = sum_j w_j max_{r in R} s_j(r) / sum_j w_j

which is monotone and submodular, so adding the best recipe again and again reaches at least 1 - 1/e of the best set's
cover (Nemhauser, Wolsey & Fisher 1978). Once no recipe adds more than `LEAST`, a further round begins with the recipes
that are left and unlike those chosen. Feurer et al. 2015 start a search from the best recipes of similar datasets;
greedy portfolios are those of Feurer et al. 2022 (Auto-sklearn 2.0, section 3). The spreads and widths are ours.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from domain.fitting import fitted
from domain.history import Meta, PastJob, PastTrial
from domain.job import Budget, Values
from domain.space import Choice, Dimension, Space

Floats = NDArray[np.float64]

# One unit of distance. Sizes compare by their ratio; two jobs cannot say how jobs spread, so these are no sample's.
SPREAD = {
    "n_train": math.log(4), "n_classes": math.log(4), "per_class_min": math.log(4), "resolution": math.log(2),
    "skill": 0.2, "distance": 0.3, "logme": 0.3,
}  # fmt: skip
NEAREST = 8  # past jobs that have a say
TOO_FAR = 2.0  # beyond it, a job is nothing like the present one
PER_JOB = 20  # best trials of each that may be proposed
WIDTH = 0.2
LEAST = 0.1
ALIKE = 0.5  # recipes this close to a chosen one are no further try
SHARE, MOST = 0.25, 8  # of a budget of trials, and in any case
EXPLORED = 0.5  # of the searched trials at least are the sampler's own


class Near(NamedTuple):
    """A past job with what its trials were worth."""

    job: PastJob
    weight: float
    trials: Sequence[PastTrial]
    worth: Sequence[float]  # of each trial, in [0, 1]


class Suggestion(NamedTuple):
    values: Values
    job: PastJob  # where it was found
    trial: PastTrial


def described(meta: Meta) -> dict[str, float]:
    """The meta-features on the scale of `SPREAD`; LogME only together with its network, whose features it measures."""
    logs = {name: float(getattr(meta, name)) for name in ("n_train", "n_classes", "per_class_min", "resolution")}
    found: dict[str, float | None] = {name: math.log(max(value, 1.0)) for name, value in logs.items()}
    found |= {"skill": meta.skill, "distance": meta.distance, "logme": meta.scores.get("logme")}
    return {name: value / SPREAD[name] for name, value in found.items() if value is not None}


def distance(one: Meta, other: Meta) -> float:
    """How unlike two jobs are, from 0."""
    a, b = described(one), described(other)
    shared = [f for f in SPREAD if f in a and f in b and (f != "logme" or one.backbone == other.backbone)]
    return math.sqrt(sum((a[f] - b[f]) ** 2 for f in shared) / len(shared))


def nearest(present: Meta, past: Iterable[PastJob]) -> list[tuple[PastJob, float]]:
    """The past jobs that are like the present one, the nearest first, with their distance."""
    found = [(job, distance(present, job.meta)) for job in past]
    return sorted((pair for pair in found if pair[1] <= TOO_FAR), key=lambda pair: (pair[1], pair[0].id))[:NEAREST]


def worth(trials: Sequence[PastTrial], direction: str) -> list[float]:
    """What each trial gained over the job's own best anchor, as a share of what the best gained."""
    sign = 1.0 if direction == "maximize" else -1.0
    values = [sign * trial.value for trial in trials]
    anchors = [v for v, trial in zip(values, trials, strict=True) if trial.anchor is not None]
    base = max(anchors) if anchors else median(values)
    gain = max(values) - base
    return [max(0.0, (v - base) / gain) if gain > 0 else 0.0 for v in values]


def weighed(near: Iterable[tuple[PastJob, float]], trials: Mapping[str, Sequence[PastTrial]]) -> list[Near]:
    """Past jobs with their trials, by job id; those without trials say nothing."""
    return [
        Near(job, math.exp(-gap), trials[job.id], worth(trials[job.id], job.direction))
        for job, gap in near if trials.get(job.id)
    ]  # fmt: skip


def room(budget: Budget, n_fixed: int, s_per_trial: float) -> int:
    """How many trials may be taken from elsewhere: none if the sampler would have less than `EXPLORED` of the rest."""
    times = [t for t in (budget.wall_s, budget.device_s) if t is not None and s_per_trial > 0]
    counts = [budget.trials] if budget.trials is not None else []
    n_trials = min([*counts, *(int(t / s_per_trial) for t in times)], default=0)
    searched = max(0, n_trials - n_fixed)
    return max(0, min(max(1, int(SHARE * n_trials)), int((1 - EXPLORED) * searched), MOST))


def portfolio(
    space: Space, near: Sequence[Near], n: int, *, source_of: Callable[[PastTrial], str],
    wanted: Callable[[Values], bool] = lambda _: True,
) -> list[Suggestion]:  # fmt: skip
    """At most `n` recipes inside `space`, different from each other and all `wanted`, in the order to try them."""
    fits = [[fitted(space, t.values, source=source_of(t)) for t in job.trials] for job in near]
    found: list[Suggestion] = []
    for job, mapped in zip(near, fits, strict=True):
        rows = sorted(zip(job.worth, job.trials, mapped, strict=True), key=lambda row: (-row[0], row[1].number))
        found += [Suggestion(v, job.job, t) for w, t, v in rows[:PER_JOB] if w > 0 and v is not None and wanted(v)]
    recipes = [s.values for s in found]
    table = [estimates(space, recipes, mapped, job.worth) for job, mapped in zip(near, fits, strict=True)]
    weights = np.array([job.weight for job in near])
    order = _rounds(weights / weights.sum(), np.array(table).T, closeness(space, recipes, recipes)) if found else ()
    return [found[i] for i in islice(order, n)]


def estimates(
    space: Space, recipes: Sequence[Values], tried: Sequence[Values | None], worth: Sequence[float]
) -> Floats:  # (R,)
    """s_j(r) of each recipe: the worth of the trial of the job nearest to it, less the further away that is."""
    inside = [(values, value) for values, value in zip(tried, worth, strict=True) if values is not None]
    if not inside:
        return np.zeros(len(recipes))
    near = closeness(space, recipes, [values for values, _ in inside])
    at = near.argmax(1)
    found: Floats = near[np.arange(len(recipes)), at] * np.array([value for _, value in inside])[at]
    return found


def closeness(space: Space, rows: Sequence[Values], columns: Sequence[Values]) -> Floats:  # (R, C)
    """exp(-D^2 / 2 WIDTH^2), 1 for equal recipes, whatever the source; a value that one of two lacks differs wholly."""
    total, count = np.zeros((len(rows), len(columns))), np.zeros((len(rows), len(columns)))
    for dimension in space.dimensions:
        if dimension.path == "source":
            continue
        a, b = _places(dimension, rows)[:, None], _places(dimension, columns)[None]
        gap = np.nan_to_num(np.abs(a - b), nan=1.0)
        if isinstance(dimension.range, Choice):
            gap = (gap > 0).astype(np.float64)
        active = ~(np.isnan(a) & np.isnan(b))
        total += np.where(active, gap**2, 0.0)
        count += active
    near: Floats = np.exp(-total / np.maximum(count, 1) / (2 * WIDTH**2))
    return near


def cover(weights: Floats, table: Floats, chosen: Sequence[int]) -> float:  # (J,), (R, J)
    """What the chosen recipes together are worth over all jobs: table[r, j] = s_j(r)."""
    return float(weights @ table[list(chosen)].max(0, initial=0.0))


def _rounds(weights: Floats, table: Floats, close: Floats) -> Iterator[int]:
    """Recipes in the order in which they are to be tried: greedy covers, one after another, each of unlike recipes."""
    left = list(range(len(table)))
    while left:
        together: list[int] = []
        while left:
            reached = cover(weights, table, together)
            best = max(left, key=lambda i: cover(weights, table, [*together, i]))
            if cover(weights, table, [*together, best]) - reached <= LEAST:
                break
            yield best
            together.append(best)
            left = [i for i in left if close[i, best] < ALIKE]
        if not together:
            return


def _places(dimension: Dimension, recipes: Sequence[Values]) -> Floats:
    """Where each recipe lies on an axis: from 0 to 1, or the number of the option; nan where it has no such value."""
    range_ = dimension.range
    found = []
    for values in recipes:
        value = values.get(dimension.path)
        if value is None:
            found.append(math.nan)
        elif isinstance(range_, Choice):
            found.append(float(next((i for i, o in enumerate(range_.options) if o == value), len(range_.options))))
        else:
            low, high, at = float(range_.low), float(range_.high), float(value)
            if range_.log:
                low, high, at = math.log(low), math.log(high), math.log(at)
            found.append((at - low) / (high - low) if high > low else 0.0)
    return np.array(found)
