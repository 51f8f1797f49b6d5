"""One job's study: a view in memory on the trials that the database holds.

Optuna is shown the history and asked for the next recipe. Every ask builds its sampler anew from (study seed, trial
number), and what a sampler has to remember is kept with its trials: two processes with the same history propose the
same values, whichever of them asks.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial
from optuna.trial import TrialState as OptunaState

from domain.rungs import GRID
from domain.sampler import check_sampler
from domain.space import Choice, FloatRange, IntRange, Space, Value
from domain.states import TrialState
from search.asked import Asked
from search.curves import on_grid
from search.history import History, frozen
from search.importance import importance
from search.registry import load
from search.rungs import Rungs
from search.tracks import Pruner, Track, Tracks

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.PRUNED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
    TrialState.WAITING: OptunaState.RUNNING,
    TrialState.RUNNING: OptunaState.RUNNING,
    TrialState.PAUSED: OptunaState.RUNNING,
}
Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True, slots=True)
class Past:
    """A trial as history tells it."""

    number: int
    state: TrialState
    values: Mapping[str, Value]
    value: float | None = None  # of the first objective
    curve: tuple[tuple[float, float], ...] = ()  # (share, value)
    others: tuple[float, ...] = ()  # of further objectives, in their order
    attrs: Mapping[str, Any] = field(default_factory=dict)  # as proposed
    rung: float | None = None  # share at which it rests, if it does
    passed: float | None = None  # share that it was promoted from
    comparable: bool = True  # False: of another fidelity, so that its curve says nothing about the others'


@dataclass(frozen=True, slots=True)
class Proposal:
    number: int
    values: dict[str, Value]
    attrs: dict[str, Any] = field(default_factory=dict)  # what the sampler has to find again in this trial


class Search:
    """The study of one job. Not thread-safe: its owner holds a lock."""

    def __init__(
        self, space: Space, *, direction: Direction, others: Mapping[str, Direction] | None = None, sampler: str,
        pruner: str, seed: int, n_folds: int = 1,
    ) -> None:  # fmt: skip
        """`others` are further objectives by name, and their directions; pruners then stop nothing."""
        directions = [direction, *(others or {}).values()]
        check_sampler(sampler, space, n_objectives=len(directions))
        self.others = tuple(others or {})
        self.space = space
        self.finished: set[int] = set()
        self._sampler = load("samplers", sampler)
        self._seed = seed
        self._kept: dict[str, Any] = {}
        self._history = History(getattr(self._sampler, "MOST", None))
        self._study = optuna.create_study(storage=self._history, directions=directions)
        self._counts_resting: bool = getattr(self._sampler, "COUNTS_RESTING", False)
        self._prunes = not self.others
        self._pruner: Pruner = load("pruners", pruner).build()
        self._tracks = Tracks(direction, n_folds=n_folds)
        self._ranges = {d.path: d.range for d in space.dimensions}
        self._distributions = {d.path: _distribution(d.range) for d in space.dimensions}

    def learn(self, trials: Iterable[Past]) -> None:
        """Add what is new. Cancelled trials and recipes outside the space (such as a linear probe) teach nothing."""
        for past in trials:
            if past.number in self.finished:
                continue
            if past.state in _STATES and self._inside(past.values):
                self._put(past)
            else:
                self._history.drop(past.number)
                self._tracks.drop(past.number)
            if past.comparable and past.number in self._history:
                curve, rung, passed = past.curve, past.rung, past.passed
                self._tracks.put(past.number, past.state, curve, past.value, rung=rung, passed=passed)
            if past.state.finished:
                self.finished.add(past.number)

    def ask(self, number: int, *, again: int = 0) -> Proposal:
        """The next recipe's values. Until its row is learned, the proposal counts as running; `forget` takes it back.

        `again` counts the proposals for this number that were refused before.
        """
        seed = derive_seed(self._seed, number, again)
        self._study.sampler = self._sampler.build(Asked(self.space, number, self._seed, seed, again, self._kept))
        self._history.number = number
        trial = self._study.ask()
        values: dict[str, Value] = dict(self.space.fixed)
        for dimension in self.space.dimensions:
            if dimension.active(values):
                values[dimension.path] = _suggest(trial, dimension.path, self._distributions[dimension.path])
        proposal = Proposal(number, values, self._history.notes(number))
        self._put(Past(number, TrialState.WAITING, values, attrs=proposal.attrs))
        return proposal

    def forget(self, number: int) -> None:
        """Take back a proposal that another process has overtaken."""
        self._history.drop(number)

    def should_prune(self, number: int, curve: Iterable[tuple[float, float]], *, asked: float = 0.0) -> bool:
        """Would the pruner stop trial `number`, given its curve so far? Trials outside the space are never stopped.

        `asked` is the share up to which this was asked before, and it went on: rungs up to there are behind it.
        """
        track = self._track(number, curve, asked)
        return track is not None and self._pruner.stops(track, self._tracks.others(number))

    def rests_at(self, number: int, curve: Iterable[tuple[float, float]], *, asked: float = 0.0) -> float | None:
        """The rung, as a share of the budget, at which trial `number` should rest now; None lets it go on, and so does
        a pruner without rungs, which stops for good."""
        track = self._track(number, curve, asked)
        if not isinstance(self._pruner, Rungs) or track is None:
            return None
        rung = self._pruner.rests_at(track, self._tracks.others(number))
        return None if rung is None else rung / GRID

    def promotable(self, *, last: bool = False) -> list[int]:
        """Trials that rest at a rung and may go on by now, the best first; `last`: nothing else is left to train."""
        return self._pruner.promotable(self._tracks, last=last) if isinstance(self._pruner, Rungs) else []

    def importance(self) -> dict[str, float]:
        """What each dimension had to do with coming out on top; empty while too few trials are COMPLETE."""
        return importance(self._study)

    def _track(self, number: int, curve: Iterable[tuple[float, float]], asked: float) -> Track | None:
        """The track of a running trial, its curve as it is now; None if nothing is to be decided about it."""
        if not self._prunes or number in self.finished or number not in self._tracks:
            return None
        track = self._tracks.walked(number, curve)
        return replace(track, passed=max(track.passed, math.floor(asked * GRID + 1e-9)))

    def _inside(self, values: Mapping[str, Value]) -> bool:
        return all(
            self._ranges[path].holds(value) if path in self._ranges else self.space.fixed.get(path) == value
            for path, value in values.items()
        )

    def _put(self, past: Past) -> None:
        """Show a trial to Optuna as it is now."""
        state = _STATES[past.state]
        if state == OptunaState.COMPLETE and not past.comparable:
            state = OptunaState.PRUNED
        values = None if past.value is None else [past.value, *past.others]
        curve = self._at_rest(past) if state == OptunaState.RUNNING else {}
        if curve:  # to a sampler that would wait for it, it has ended, until it has a value
            state = OptunaState.PRUNED
        elif state == OptunaState.PRUNED:  # known by how far it came, and what it showed there
            share, last = max((p for p in past.curve if math.isfinite(p[1])), default=(0.0, math.nan))
            curve = {} if share == 0.0 else {round(share * GRID): last}
            # Optuna cannot rank an unfinished trial among several objectives.
            state = OptunaState.PRUNED if curve and len(self._study.directions) == 1 else OptunaState.FAIL
        elif state == OptunaState.COMPLETE and not self._ranks(values):
            state = OptunaState.FAIL
        searched = {path: value for path, value in past.values.items() if path in self._distributions}
        trial = frozen(
            past.number, state, params=searched, distributions={path: self._distributions[path] for path in searched},
            values=values if state == OptunaState.COMPLETE else None, curve=curve,
            notes=dict(past.attrs.get("sampler", {})),
        )  # fmt: skip
        self._history.put(trial, past.attrs.get("study", {}))

    def _at_rest(self, past: Past) -> dict[int, float]:
        """What a trial that rests showed at its rung, or one that was promoted at the rung where it rested; nothing of
        others, nor where the sampler takes all of them for running."""
        rung = past.rung if past.rung is not None else past.passed
        if rung is None or not self._prunes or not self._counts_resting:
            return {}
        step = round(rung * GRID)
        known = on_grid(past.curve)
        return {step: known[step]} if step in known else {}

    def _ranks(self, values: list[float] | None) -> bool:
        """A number that is none never ranks."""
        return values is not None and len(values) == len(self._study.directions) and all(map(math.isfinite, values))


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
