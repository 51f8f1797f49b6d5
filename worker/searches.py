"""The studies of recent jobs, kept in this process and fed with new rows only; a fresh process rebuilds them."""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from domain.job import JobSpec
from domain.states import TrialState
from search.study import Past, Search
from store.trials import reports_of, sketch_trials, trials_by_id

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
                    spec.space, direction=spec.objective.direction, sampler=spec.sampler, pruner=spec.pruner,
                    seed=spec.seed,
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
    news = [t.id for t in sketch_trials(session, job_id) if t.number not in search.finished]
    rows = trials_by_id(session, news)
    curves: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for report in reports_of(session, [t.id for t in rows if t.anchor is None or t.state == "COMPLETE"]):
        if report.value is not None:
            curves[report.trial_id].append((report.share, report.value))
    return [Past(t.number, TrialState(t.state), t.values, t.value, tuple(curves[t.id])) for t in rows]
