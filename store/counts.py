"""How many there are: what the metrics and the readiness check show."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from domain.states import LotState
from store.clock import now
from store.tables import LotRow, WorkerRow


def by_state(session: Session, row: type[Any]) -> dict[str, int]:
    """Rows per state, over all workspaces."""
    counts = session.execute(select(row.state, func.count()).group_by(row.state))
    return {state: int(n) for state, n in counts}


def oldest_waiting_lot_s(session: Session) -> float:
    """For how long the oldest lot that is due has waited; 0 if none waits."""
    query = select(now() - func.min(LotRow.created_at)).where(
        LotRow.state == LotState.WAITING, LotRow.not_before <= now()
    )
    return max(float(session.scalar(query) or 0.0), 0.0)


def workers_alive(session: Session, within_s: float) -> int:
    """Workers that told of themselves within `within_s`."""
    return int(session.scalar(select(func.count()).where(WorkerRow.seen_at > now() - within_s)) or 0)
