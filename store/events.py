"""What happened to a job, in order: written in the transaction of the change it tells, read by SSE and polling."""

from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from domain.errors import NotFound
from store.tables import EventRow, JobRow

Kind = Literal[
    "job.state", "job.estimate", "job.best", "job.budget", "job.result", "job.log",
    "trial.created", "trial.state", "trial.report",
]  # fmt: skip


def tell(session: Session, job_id: str, kind: Kind, body: dict[str, Any]) -> int:
    """Append an event and return its number.

    The increment locks the job's row until the commit, so numbers have no gaps and become visible in order.
    A transaction that also locks a lot or its trials does so first: lot, trials, job.
    """
    session.flush()
    counted = update(JobRow).where(JobRow.id == job_id).values(n_events=JobRow.n_events + 1).returning(JobRow.n_events)
    seq = session.scalar(counted.execution_options(synchronize_session=False))
    if seq is None:
        raise NotFound("job_not_found", f"there is no job {job_id}")
    session.add(EventRow(job_id=job_id, seq=seq, kind=kind, body=body))
    session.flush()
    return int(seq)


def since(session: Session, job_id: str, seq: int = 0, limit: int = 200) -> list[EventRow]:
    """Events after number `seq`, oldest first."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > seq).order_by(EventRow.seq).limit(limit)
    return list(session.scalars(query))
