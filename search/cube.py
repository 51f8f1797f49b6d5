"""A space as the cube [-1, 1]^d, for methods that move points about."""

# ruff: noqa: ARG002  (the interface is Optuna's)

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from domain.space import Choice, Dimension, FloatRange, IntRange, Space, Value

Array = NDArray[np.float64]


class Cube:
    """One axis a dimension, whether it is active or not: an axis whose dimension is inactive is not read.

    Real numbers lie linearly on their axis, or their logarithms do. A whole number is the bin [n - 1/2, n + 1/2] of
    the same map, an option one of equal bins in the order they are listed. `linear` is PaddleHub's map instead: no
    logarithms, whole numbers by truncation.
    """

    def __init__(self, dimensions: Iterable[Dimension], *, linear: bool = False) -> None:
        ranges = {d.path: d.range for d in dimensions}
        self.axes = {path: axis for axis, path in enumerate(ranges)}
        self._ranges = list(ranges.values())
        self._linear = linear
        self.defaults: Array = np.array([self._place(r, r.default) for r in self._ranges], dtype=np.float64)

    def encode(self, values: Mapping[str, Any]) -> Array:
        """The point of these values. An axis without a value stands at its default."""
        point = self.defaults.copy()
        for path, axis in self.axes.items():
            if path in values:
                point[axis] = self._place(self._ranges[axis], values[path])
        return point

    def decode(self, path: str, point: Sequence[float] | Array) -> Value:
        """The value at `path`; a point outside the cube counts as the nearest one in it."""
        range_ = self._ranges[self.axes[path]]
        share = (min(max(float(point[self.axes[path]]), -1.0), 1.0) + 1) / 2
        if isinstance(range_, Choice):
            return range_.options[min(int(share * len(range_.options)), len(range_.options) - 1)]
        low, high = self._ends(range_)
        value = low + share * (high - low)
        if self._is_log(range_):
            value = math.exp(value)
        if isinstance(range_, IntRange):
            value = int(value) if self._linear else round(value)
        return min(max(value, range_.low), range_.high)

    def _place(self, range_: FloatRange | IntRange | Choice, value: Any) -> float:
        if isinstance(range_, Choice):
            return -1 + 2 * (range_.options.index(value) + 0.5) / len(range_.options)
        low, high = self._ends(range_)
        if low == high:
            return 0.0
        return -1 + 2 * ((math.log(value) if self._is_log(range_) else float(value)) - low) / (high - low)

    def _ends(self, range_: FloatRange | IntRange) -> tuple[float, float]:
        half = 0.5 if isinstance(range_, IntRange) and not self._linear else 0.0
        ends = range_.low - half, range_.high + half
        return (math.log(ends[0]), math.log(ends[1])) if self._is_log(range_) else ends

    def _is_log(self, range_: FloatRange | IntRange) -> bool:
        return range_.log and not self._linear


Propose = Callable[[list[FrozenTrial], bool], tuple[Sequence[float] | Array, dict[str, Any]]]


class PointSampler(optuna.samplers.BaseSampler):
    """Proposes a point of a cube; what is no axis of it is drawn uniformly.

    `propose` is given the other trials by number and whether larger values are better, and returns a point and notes.
    The notes are kept with the trial, and found again in its `system_attrs`.
    """

    def __init__(self, cube: Cube, propose: Propose, *, seed: int) -> None:
        self._cube = cube
        self._propose = propose
        self._point: Sequence[float] | Array = ()
        self._rest = optuna.samplers.RandomSampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        self._point, notes = self._propose(others, study.directions[0] == StudyDirection.MAXIMIZE)
        for key, note in notes.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, note)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name in self._cube.axes:
            return self._cube.decode(param_name, self._point)
        return self._rest.sample_independent(study, trial, param_name, param_distribution)


def regret(trial: FrozenTrial, larger_is_better: bool) -> float:
    """What a trial is to be judged by, smaller is better: nothing beats a trial that was stopped before its end."""
    if trial.state != TrialState.COMPLETE:
        return math.inf
    assert trial.value is not None
    return -trial.value if larger_is_better else trial.value


def stopped_at(trial: FrozenTrial, larger_is_better: bool) -> tuple[float, float]:
    """How trials of infinite regret compare, smaller is better: how far they came, then what they showed there."""
    step = trial.last_step
    if trial.state == TrialState.COMPLETE or step is None:
        return 0.0, 0.0
    last = trial.intermediate_values[step]
    return -float(step), -last if larger_is_better else last


def always_active(space: Space) -> list[Dimension]:
    """The dimensions that every recipe of the space has."""
    return [d for d in space.dimensions if d.active(space.fixed)]
