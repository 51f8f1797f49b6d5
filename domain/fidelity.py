"""Tried cheaply first: searched trials are trained at a low value of one dimension, and the best of them then in full.

    resolution   at fewer pixels per side, the steps as they are: trained and judged on small pictures
    fraction     on a stratified part of the training items, the steps in proportion: every item is seen as often as in
                 full; judged on all of val

Every time 1 / promote cheap trials have ended, the best that is not yet promoted runs in full, as a trial of its own;
so does the last trial of a budget. Warm starts, repeats and anchors run in full from the beginning.

A cheap trial runs to its end, for that is its rung: pruners neither look at it nor compare others with it. It then is
PRUNED with its value and without weights. So nothing that is chosen among COMPLETE trials, such as the winner, a
teacher or a member of an ensemble, can be one; and a sampler learns it as a trial that was stopped at the share
`promote` of its budget: TPE ranks it by its value among its like, below every trial that ran in full. (Values of two
fidelities are on different scales; the order within one is what carries over. Li et al. 2018, section 2.)
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from domain.catalogue import Catalogue
from domain.errors import Invalid
from domain.job import Fidelity, JobSpec
from domain.recipe import Recipe, refused_resolution
from domain.space import Choice, FloatRange

CHEAP, PROMOTED = "cheap", "promoted"  # origins of trials
RESOLUTION, FRACTION = "data.resolution", "data.fraction"
MIN_PER_CLASS = 2  # training items that a fraction has to leave


class Cheap(NamedTuple):
    """A cheap trial that has ended."""

    number: int
    value: float


def cheap_recipe(fidelity: Fidelity, recipe: Recipe) -> Recipe:
    """The recipe as it is tried first."""
    if fidelity.dimension == "resolution":
        data = recipe.data.model_copy(update={"resolution": int(fidelity.low)})
        return recipe.model_copy(update={"data": data})
    part = recipe.data.fraction * fidelity.low
    data = recipe.data.model_copy(update={"fraction": part})
    return recipe.model_copy(update={"data": data, "steps": max(1, round(recipe.steps * fidelity.low))})


def cheap_attrs(fidelity: Fidelity) -> dict[str, Any]:
    """How a cheap trial is told from others: its low value, and what share of a trial it counts for."""
    path = RESOLUTION if fidelity.dimension == "resolution" else FRACTION
    return {"origin": CHEAP, "fidelity": {path: fidelity.low}, "counts_for": fidelity.promote}


def due(spec: JobSpec, ended: Iterable[Cheap], promoted: Iterable[int], *, last: bool) -> int | None:
    """The number of the cheap trial that is to run in full next, if it is time for one; `last`: no further will come.

    `promoted` are the numbers of those that were promoted before.
    """
    before, every = set(promoted), list(ended)
    candidates = [trial for trial in every if trial.number not in before]
    if spec.fidelity is None or not candidates:
        return None
    n_due = math.floor(len(every) * spec.fidelity.promote + 1e-9)
    if len(before) >= n_due and not last:
        return None
    sign = -1 if spec.objective.direction == "maximize" else 1
    return min(candidates, key=lambda trial: (sign * trial.value, trial.number)).number


def check_fidelity(spec: JobSpec, catalogue: Catalogue, per_class: Mapping[str, Mapping[str, int]]) -> None:
    """Invalid("bad_fidelity") unless the low value is one that the job's networks and data can be trained at."""
    fidelity = spec.fidelity
    if fidelity is None:
        return
    if len(spec.objectives) > 1:
        raise _bad("cheap trials are compared by one objective; leave fidelity out, or turn the others into limits")
    if fidelity.dimension == "resolution":
        _check_resolution(spec, fidelity.low, catalogue)
    else:
        _check_fraction(spec, fidelity.low, per_class)


def _check_resolution(spec: JobSpec, low: float, catalogue: Catalogue) -> None:
    if low != int(low):
        raise _bad(f"a resolution is a whole number of pixels, not {low:g}")
    for source in spec.sources:
        if refused := refused_resolution(int(low), catalogue.backbone(source.backbone)):
            raise _bad(refused[0].detail)
    smallest = _smallest(spec, RESOLUTION, 0.0)
    if low >= smallest:
        raise _bad(f"resolution {low:g} is not below the smallest of the job, {smallest:g}")


def _check_fraction(spec: JobSpec, low: float, per_class: Mapping[str, Mapping[str, int]]) -> None:
    if not 0 < low < 1:
        raise _bad(f"a fraction of the training items lies between 0 and 1, not at {low:g}")
    part = low * _smallest(spec, FRACTION, 1.0)
    short = [name for name, counts in per_class.items() if math.ceil(part * _in_a_fit(spec, counts)) < MIN_PER_CLASS]
    if short:
        told = ", ".join(short[:5]) + (", …" if len(short) > 5 else "")
        raise _bad(f"{low:g} of the training items leaves fewer than {MIN_PER_CLASS} of {told}; take a larger part")


def _in_a_fit(spec: JobSpec, counts: Mapping[str, int]) -> int:
    """Training items of a class in each fit, given its count per split."""
    n_train, n_val = counts.get("train", 0), counts.get("val", 0)
    return n_train if spec.n_folds == 1 else (n_train + n_val) * (spec.n_folds - 1) // spec.n_folds


def _smallest(spec: JobSpec, path: str, default: float) -> float:
    """The smallest value of a dimension in the job's space."""
    for dimension in spec.space.dimensions:
        if dimension.path == path and isinstance(dimension.range, Choice):
            return min(float(option) for option in dimension.range.options)
        if dimension.path == path and isinstance(dimension.range, FloatRange):
            return dimension.range.low
    return float(spec.space.fixed.get(path, default))


def _bad(detail: str) -> Invalid:
    return Invalid("bad_fidelity", detail, field="fidelity")
