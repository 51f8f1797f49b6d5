"""Which workers are alive, and what they found on their machines."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from store.clock import now
from store.inserts import insert
from store.tables import WorkerRow


def seen(session: Session, worker_id: str, queues: Sequence[str], facts: dict[str, Any]) -> None:
    """A sign of life."""
    said = {"queues": list(queues), "facts": facts, "seen_at": now()}
    alive = insert(session, WorkerRow).values(id=worker_id, **said)
    session.execute(alive.on_conflict_do_update(index_elements=[WorkerRow.id], set_=said))


def gone(session: Session, worker_id: str) -> None:
    """The worker has said goodbye."""
    session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def live_workers(session: Session, queue: str | None, within_s: float) -> list[WorkerRow]:
    """Workers of a queue (None: of any) seen within the last `within_s` seconds."""
    rows = session.scalars(select(WorkerRow).where(WorkerRow.seen_at >= now() - within_s).order_by(WorkerRow.id))
    return [row for row in rows if queue is None or queue in row.queues]


def forget_silent(session: Session, after_s: float) -> None:
    """Rows of workers that went without a goodbye."""
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < now() - after_s))
