"""One job's study: a view in memory on the trials that the database holds.

Optuna's in-memory storage is filled from history and asked for the next recipe. Every ask builds its sampler anew from
(study seed, trial number): two processes with the same history propose the same values, whichever of them asks.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, create_trial
from optuna.trial import TrialState as OptunaState

from domain.space import Choice, FloatRange, IntRange, Space, Value
from domain.states import TrialState
from search.curves import on_grid
from search.registry import load

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.WAITING: OptunaState.RUNNING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.PAUSED: OptunaState.RUNNING,
}
_names = count()


@dataclass(frozen=True, slots=True)
class Past:
    """A trial as history tells it."""

    number: int
    state: TrialState
    values: Mapping[str, Value]
    value: float | None = None
    curve: tuple[tuple[float, float], ...] = ()  # (share, value)


@dataclass(frozen=True, slots=True)
class Proposal:
    number: int
    values: dict[str, Value]
    attrs: dict[str, Any] = field(default_factory=dict)


class Search:
    """The study of one job. Not thread-safe: its owner holds a lock."""

    def __init__(
        self, space: Space, *, direction: Literal["maximize", "minimize"], sampler: str, pruner: str, seed: int
    ) -> None:
        self.space = space
        self._sampler = load("samplers", sampler)
        self._seed = seed
        self._storage = InMemoryStorage()
        name = f"job-{next(_names)}"
        self._study = optuna.create_study(
            storage=self._storage, study_name=name, direction=direction, pruner=load("pruners", pruner).build()
        )
        self._study_id = self._storage.get_study_id_from_name(name)
        self._ids: dict[int, int] = {}  # our trial number -> Optuna's trial id
        self._distributions = {d.path: _distribution(d.range) for d in space.dimensions}
        self.finished: set[int] = set()

    def learn(self, trials: Iterable[Past]) -> None:
        """Add what is new. Cancelled trials and recipes outside the space (such as a linear probe) teach nothing."""
        for past in trials:
            if past.number in self.finished:
                continue
            if past.state in _STATES and (past.number in self._ids or self._inside(past.values)):
                self._put(past)
            elif past.number in self._ids:  # cancelled after it was asked for
                self._storage.set_trial_state_values(self._ids.pop(past.number), OptunaState.FAIL)
            if past.state.finished:
                self.finished.add(past.number)

    def ask(self, number: int, *, again: int = 0) -> Proposal:
        """The next recipe's values. Until its row is learned, the proposal counts as running; `forget` takes it back.

        `again` counts the proposals for this number that were refused before.
        """
        self._study.sampler = self._sampler.build(seed=derive_seed(self._seed, number, again))
        trial = self._study.ask()
        values: dict[str, Value] = dict(self.space.fixed)
        for dimension in self.space.dimensions:
            if dimension.active(values):
                values[dimension.path] = _suggest(trial, dimension.path, self._distributions[dimension.path])
        self._ids[number] = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        return Proposal(number=number, values=values)

    def forget(self, number: int) -> None:
        """Take back a proposal that another process has overtaken."""
        trial_id = self._ids.pop(number, None)
        if trial_id is not None:
            self._storage.set_trial_state_values(trial_id, OptunaState.FAIL)

    def should_prune(self, number: int, curve: Iterable[tuple[float, float]]) -> bool:
        """Would the pruner stop trial `number`, given its curve so far? Trials outside the space are never stopped."""
        if number not in self._ids or number in self.finished:
            return False
        self._set_curve(self._ids[number], on_grid(curve))
        return self._study.pruner.prune(self._study, self._storage.get_trial(self._ids[number]))

    def _inside(self, values: Mapping[str, Value]) -> bool:
        ranges = {d.path: d.range for d in self.space.dimensions}
        return all(
            ranges[path].holds(value) if path in ranges else self.space.fixed.get(path) == value
            for path, value in values.items()
        )

    def _put(self, past: Past) -> None:
        if past.number not in self._ids:
            searched = {p: v for p, v in past.values.items() if p in self._distributions}
            template = create_trial(
                state=OptunaState.RUNNING,
                params=searched,
                distributions={p: self._distributions[p] for p in searched},
            )
            self._ids[past.number] = self._storage.create_new_trial(self._study_id, template_trial=template)
        trial_id = self._ids[past.number]
        if self._storage.get_trial(trial_id).state.is_finished():
            return
        curve = on_grid(past.curve)
        self._set_curve(trial_id, curve)
        state, value = _STATES[past.state], past.value
        if state == OptunaState.PRUNED and value is None:
            value = curve[max(curve)] if curve else None
        if state in (OptunaState.COMPLETE, OptunaState.PRUNED) and (value is None or not math.isfinite(value)):
            state = OptunaState.FAIL  # a number that is none never ranks
        if state.is_finished():
            keep = value is not None and state != OptunaState.FAIL
            self._storage.set_trial_state_values(trial_id, state, [value] if keep and value is not None else None)

    def _set_curve(self, trial_id: int, curve: Mapping[int, float]) -> None:
        known = self._storage.get_trial(trial_id).intermediate_values
        for step, value in curve.items():
            if step not in known:
                self._storage.set_trial_intermediate_value(trial_id, step, value)


def derive_seed(*parts: int) -> int:
    """A 32-bit seed from (study seed, trial number, …), the same in every process."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def _distribution(range_: FloatRange | IntRange | Choice) -> BaseDistribution:
    if isinstance(range_, FloatRange):
        return FloatDistribution(range_.low, range_.high, log=range_.log)
    if isinstance(range_, IntRange):
        return IntDistribution(range_.low, range_.high, log=range_.log)
    return CategoricalDistribution(range_.options)


def _suggest(trial: Trial, path: str, distribution: BaseDistribution) -> Value:
    value: Value
    if isinstance(distribution, FloatDistribution):
        value = trial.suggest_float(path, distribution.low, distribution.high, log=distribution.log)
    elif isinstance(distribution, IntDistribution):
        value = trial.suggest_int(path, distribution.low, distribution.high, log=distribution.log)
    else:
        assert isinstance(distribution, CategoricalDistribution)
        choice = trial.suggest_categorical(path, distribution.choices)
        assert choice is not None
        value = choice
    return value
