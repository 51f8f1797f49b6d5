"""Leases: one claim, one heartbeat, one sweep for everything that a worker works on (datasets, jobs, lots).

A lease is a time by the database's clock; a fence is a number that rises with every claim. A worker that has lost its
lease may not know it yet: every later write of it begins with `hold`, which fails once somebody else owns the row or
the row has been taken back.
"""

import hashlib
from collections.abc import Collection
from typing import Any, TypeVar

from psycopg.errors import LockNotAvailable
from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from domain.errors import LeaseLost
from domain.states import DatasetState, JobState, LotState
from store.clock import now
from store.events import tell
from store.inserts import insert
from store.tables import DatasetRow, JobRow, LotRow, TurnRow

LeasedRow = DatasetRow | JobRow | LotRow
R = TypeVar("R", DatasetRow, JobRow, LotRow)

# States in which a worker is at it, or should be.
WORKED_ON: dict[type[Any], tuple[str, ...]] = {
    DatasetRow: (DatasetState.CHECKING,),
    JobRow: (JobState.PROBING, JobState.FINISHING),
    LotRow: (LotState.RUNNING,),
}


def claim(
    session: Session, row: type[R], row_id: str, *, state_from: str | Collection[str], state_to: str | None,
    owner: str, lease_s: float, max_attempts: int,
) -> int | None:  # fmt: skip
    """Take the row, if it is in `state_from`, due, under nobody's live lease and not out of attempts.

    Returns the fence, or None: somebody else has it, or there is nothing to do. One statement decides, so of any
    number of claims at once exactly one wins.
    """
    states = [state_from] if isinstance(state_from, str) else list(state_from)
    changes: dict[str, Any] = {
        "owner": owner, "fence": row.fence + 1, "attempt": row.attempt + 1, "lease_until": now() + lease_s,
    }  # fmt: skip
    if state_to is not None:
        changes["state"] = state_to
    won = update(row).where(
        row.id == row_id, row.state.in_(states), _free(row), row.not_before <= now(), row.attempt < max_attempts
    )
    fence = session.scalar(won.values(changes).returning(row.fence).execution_options(synchronize_session=False))
    if fence is not None and row is JobRow and state_to is not None:
        tell(session, row_id, "job.state", {"state": str(state_to)})
    return fence


def renew(session: Session, row: type[R], row_id: str, fence: int, lease_s: float) -> bool:
    """The heartbeat. False: the lease is lost, stop."""
    beat = update(row).where(*_held(row, row_id, fence)).values(lease_until=now() + lease_s).returning(row.id)
    return session.scalar(beat.execution_options(synchronize_session=False)) is not None


def hold(session: Session, row: type[R], row_id: str, fence: int) -> R:
    """The row, locked until the end of the transaction; LeaseLost unless `fence` still owns it."""
    query = select(row).where(*_held(row, row_id, fence)).with_for_update(key_share=True)
    held = session.scalar(query.execution_options(populate_existing=True))
    if held is None:
        raise LeaseLost("lease_lost", f"{row_id} is no longer held under fence {fence}", row_id=row_id, fence=fence)
    return held


def release(
    session: Session, row: type[R], row_id: str, fence: int, *, state: str | None = None, not_before_s: float = 0.0
) -> bool:  # fmt: skip
    """Give the row back: to `state`, not before `not_before_s` from now. False if it was not ours any more.

    Job states move by `become`.
    """
    changes: dict[str, Any] = {"owner": None, "lease_until": None, "not_before": now() + not_before_s, "woken_at": 0.0}
    if state is not None:
        changes["state"] = state
    back = update(row).where(*_held(row, row_id, fence)).values(changes).returning(row.id)
    if session.scalar(back.execution_options(synchronize_session=False)) is None:
        return False
    if row is JobRow and state is not None:
        tell(session, row_id, "job.state", {"state": str(state)})
    return True


def expired(session: Session, row: type[R], limit: int = 1000) -> list[str]:
    """Rows whose owner has gone silent, those whose lease was never written included."""
    return list(session.scalars(select(row.id).where(_overdue(row)).order_by(row.id).limit(limit)))


def take_back(session: Session, row: type[R], row_id: str) -> R | None:
    """An expired row, locked, its owner struck off: from here on the old owner can write nothing.

    The caller decides in the same transaction what becomes of it. None: it is not expired (any more).
    """
    query = update(row).where(row.id == row_id, _overdue(row)).values(owner=None, lease_until=None, woken_at=0.0)
    if session.scalar(query.returning(row.id).execution_options(synchronize_session=False)) is None:
        return None
    return session.get(row, row_id, populate_existing=True)


def due(session: Session, row: type[R], states: Collection[str], *, quiet_s: float, limit: int = 1000) -> list[str]:
    """Rows in `states` that nobody works on and whose bell was last rung `quiet_s` ago; marks them as rung now.

    This is what repairs lost messages: the row is the outbox.
    """
    waiting = (
        select(row.id)
        .where(row.state.in_(list(states)), _free(row), row.not_before <= now(), row.woken_at <= now() - quiet_s)
        .order_by(row.woken_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rung = update(row).where(row.id.in_(waiting)).values(woken_at=now()).returning(row.id)
    return sorted(session.scalars(rung.execution_options(synchronize_session=False)))


def exhausted(session: Session, row: type[R], states: Collection[str], *, max_attempts: int) -> list[str]:
    """Rows in `states` that nobody works on and nobody can claim any more: their attempts are used up."""
    query = select(row.id).where(row.state.in_(list(states)), _free(row), row.attempt >= max_attempts)
    return list(session.scalars(query.order_by(row.id)))


def take_turn(session: Session, name: str, owner: str, for_s: float) -> bool:
    """A named turn, such as the sweep: True for one owner at a time, until `for_s` have passed."""
    theirs = select(TurnRow.name).where(TurnRow.name == name, TurnRow.until > now(), TurnRow.owner != owner)
    if session.scalar(theirs) is not None:  # seen without a lock: every worker asks every few seconds
        return False
    taken = (
        insert(session, TurnRow)
        .values(name=name, owner=owner, until=now() + for_s)
        .on_conflict_do_update(
            index_elements=[TurnRow.name],
            set_={"owner": owner, "until": now() + for_s},
            where=or_(TurnRow.until <= now(), TurnRow.owner == owner),
        )
        .returning(TurnRow.name)
    )
    return session.scalar(taken.execution_options(synchronize_session=False)) is not None


def lock_name(session: Session, name: str, *, wait_s: float = 0.0) -> bool:
    """Lock a name until the end of this transaction, which may be one that reads. False if another one has it and does
    not end within `wait_s`; the rows that this transaction sees may be those from before it waited.

    SQLite has no such locks: there one process works, and always gets it.
    """
    if session.get_bind().dialect.name != "postgresql":
        return True
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
    if not wait_s:
        return bool(session.scalar(select(func.pg_try_advisory_xact_lock(key))))
    session.execute(select(func.set_config("lock_timeout", f"{1000 * wait_s:.0f}ms", True)))
    try:
        session.execute(select(func.pg_advisory_xact_lock(key)))
    except OperationalError as error:
        if not isinstance(error.orig, LockNotAvailable):
            raise
        session.rollback()
        return False
    return True


def _free(row: type[R]) -> ColumnElement[bool]:
    return or_(row.lease_until.is_(None), row.lease_until <= now())


def _held(row: type[R], row_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    return row.id == row_id, row.fence == fence, row.owner.is_not(None)


def _overdue(row: type[R]) -> ColumnElement[bool]:
    overdue = and_(row.state.in_(WORKED_ON[row]), _free(row))
    # A lot runs only under a lease. Datasets and jobs wait for their first claim in the same state: no owner, no lease.
    return overdue if row is LotRow else and_(overdue, row.owner.is_not(None))
