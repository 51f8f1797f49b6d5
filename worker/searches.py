"""The studies of recent jobs, kept in this process and fed with new rows only; a fresh process rebuilds them."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from domain.job import JobSpec
from domain.states import TrialState
from search.study import Past, Search
from store.learning import Learnable, curves_of, learnable_trials

MAX_KEPT = 16


class Searches:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[threading.Lock, Search]] = OrderedDict()

    @contextmanager
    def of(self, job_id: str, spec: JobSpec) -> Iterator[Search]:
        """The study of a job, under its own lock."""
        with self._lock:
            if job_id not in self._kept:
                search = Search(
                    spec.space, direction=spec.objective.direction,
                    others={o.name: o.direction for o in spec.objectives[1:]}, sampler=spec.sampler,
                    pruner=spec.pruner, seed=spec.seed, n_folds=spec.n_folds,
                )  # fmt: skip
                self._kept[job_id] = threading.Lock(), search
            self._kept.move_to_end(job_id)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            lock, search = self._kept[job_id]
        with lock:
            yield search


SEARCHES = Searches()


def read_history(session: Session, job_id: str, search: Search) -> list[Past]:
    """The trials that `search` has not seen finished, with their curves."""
    trials = learnable_trials(session, job_id, known=search.finished)
    curves = curves_of(session, [t.id for t in trials if t.anchor is None or t.state == "COMPLETE"])
    return [
        Past(
            t.number, TrialState(t.state), t.values, t.value, _curve(t, curves.get(t.id, ())),
            _others(t.metrics, search.others), t.attrs,
            rung=t.attrs.get("rung"), passed=t.attrs.get("passed_rung"), comparable="fidelity" not in t.attrs,
        )
        for t in trials
    ]  # fmt: skip


def _curve(trial: Learnable, reported: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """What was reported; of a cheap trial its value, at the share of a trial that it counts for (domain/fidelity)."""
    share = trial.attrs.get("counts_for")
    if share is None:
        return tuple(reported)
    return () if trial.value is None else ((float(share), trial.value),)


def _others(metrics: Mapping[str, Any] | None, names: Sequence[str]) -> tuple[float, ...]:
    """The further objectives; none of them where one is not known."""
    known = metrics or {}
    return tuple(float(known[name]) for name in names) if all(name in known for name in names) else ()
