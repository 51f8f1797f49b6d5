"""What happened to a job, in order: written in the transaction of the change it tells, read by SSE and polling."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from domain.errors import NotFound
from store.session import before_commit
from store.tables import EventRow, JobRow

Kind = Literal[
    "job.state", "job.estimate", "job.best", "job.budget", "job.result", "job.log",
    "trial.created", "trial.state", "trial.report",
]  # fmt: skip

_TALLIES = "graft_tallies"


@dataclass
class Tally:
    """What a transaction adds to the row of a job."""

    events: list[dict[str, Any]] = field(default_factory=list)
    cost_s: float = 0.0


def tell(session: Session, job_id: str, kind: Kind, body: dict[str, Any]) -> None:
    """Append an event, when the transaction is about to be committed.

    Counting locks the job's row until the commit, so numbers have no gaps and become visible in order. All workers of
    a job meet at that row: it is locked last, for the events of a whole transaction at once. So is the order of locks
    lot, trials, job. A savepoint that is rolled back does not take back what was told within it.
    """
    _tally(session, job_id).events.append({"kind": kind, "body": body})


def add_cost(session: Session, job_id: str, more_s: float) -> None:
    """The job's cost stays the sum over its trials; written where its events are."""
    _tally(session, job_id).cost_s += more_s


def since(session: Session, job_id: str, seq: int = 0, limit: int = 200) -> list[EventRow]:
    """Events after number `seq`, oldest first; those that this transaction itself has told are among them."""
    _write(session)
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > seq).order_by(EventRow.seq).limit(limit)
    return list(session.scalars(query))


def _tally(session: Session, job_id: str) -> Tally:
    tallies: dict[str, Tally] = session.info.setdefault(_TALLIES, {})
    if not tallies:
        before_commit(session, partial(_write, session))
    return tallies.setdefault(job_id, Tally())


def _write(session: Session) -> None:
    if not session.info.get(_TALLIES):
        return
    session.flush()
    for job_id, tally in sorted(session.info.pop(_TALLIES).items()):
        more = {"n_events": JobRow.n_events + len(tally.events), "cost_s": JobRow.cost_s + tally.cost_s}
        counted = update(JobRow).where(JobRow.id == job_id).values(more).returning(JobRow.n_events)
        last = session.scalar(counted.execution_options(synchronize_session=False))
        if last is None:
            raise NotFound("job_not_found", f"there is no job {job_id}")
        first = last - len(tally.events) + 1
        rows = [{"job_id": job_id, "seq": seq, **event} for seq, event in enumerate(tally.events, start=first)]
        if rows:
            session.execute(insert(EventRow), rows)
