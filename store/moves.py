"""From one state to another: only along the legal moves, only from the state that was read, and told as an event."""

from typing import Any

from sqlalchemy import func, update
from sqlalchemy.orm import Session

from domain.errors import Conflict
from domain.states import DatasetState, JobState, LotState, TrialState
from store.clock import now
from store.events import tell
from store.session import finite
from store.tables import DatasetRow, JobRow, LotRow, TrialRow

STATES: dict[type[Any], type[Any]] = {
    DatasetRow: DatasetState, JobRow: JobState, LotRow: LotState, TrialRow: TrialState,
}  # fmt: skip
_NOUNS: dict[type[Any], str] = {DatasetRow: "dataset", JobRow: "job", LotRow: "lot", TrialRow: "trial"}


def become(session: Session, row: DatasetRow | JobRow | LotRow | TrialRow, state: str, **changes: Any) -> None:
    """Move `row` to `state` and set `changes` with it, as one compare-and-set.

    Conflict("wrong_state") if that is no legal move, or if somebody else has moved the row since it was read.
    A row that leaves its state leaves its worker too: the lease of a dataset, job or lot ends. The times of starting,
    finishing and pausing are kept by the way.
    """
    kind = type(row)
    states = STATES[kind]
    before, after = states(row.state), states(state)
    if not before.can_become(after):
        legal = [str(s) for s in states if before.can_become(s)]
        raise wrong_state(row, f"cannot become {after}", legal=legal)
    values: dict[str, Any] = {"state": str(after)} | _times(kind, after, row) | finite(changes)
    if kind is not TrialRow:
        values = {"owner": None, "lease_until": None} | values
    session.flush()
    moved = update(kind).where(kind.id == row.id, kind.state == str(before)).values(values).returning(kind)
    if session.scalar(moved.execution_options(synchronize_session=False, populate_existing=True)) is None:
        session.refresh(row)
        raise wrong_state(row, f"was moved by somebody else and is {row.state} now")
    _tell_move(session, row)


def wrong_state(row: DatasetRow | JobRow | LotRow | TrialRow, why: str, **facts: Any) -> Conflict:
    """The 409 of a thing that exists but is in another state."""
    noun = _NOUNS[type(row)]
    return Conflict("wrong_state", f"{noun} {row.id} is {row.state}: it {why}", id=row.id, state=row.state, **facts)


def _times(kind: type[Any], after: Any, row: Any) -> dict[str, Any]:
    if kind is DatasetRow:
        return {"updated_at": now()}
    values: dict[str, Any] = {}
    ended = after == LotState.DONE if kind is LotRow else after.finished
    if ended:
        values["finished_at"] = now()
    if after == "RUNNING" and row.started_at is None:
        values["started_at"] = now()
    if isinstance(row, JobRow):
        if after == JobState.PAUSED:
            values["paused_at"] = now()
        elif row.state == JobState.PAUSED:
            rested_s = func.coalesce(now() - JobRow.paused_at, 0.0)
            values |= {"paused_at": None, "paused_s": JobRow.paused_s + rested_s}
    return values


def _tell_move(session: Session, row: DatasetRow | JobRow | LotRow | TrialRow) -> None:
    if isinstance(row, JobRow):
        body: dict[str, Any] = {"state": row.state, "stopped_by": row.stopped_by, "error": row.error}
        tell(session, row.id, "job.state", {k: v for k, v in body.items() if v is not None})
    elif isinstance(row, TrialRow):
        body = {
            "trial_id": row.id, "number": row.number, "state": row.state,
            "value": row.value, "cost_s": row.cost_s, "error": row.error,
        }  # fmt: skip
        tell(session, row.job_id, "trial.state", {k: v for k, v in body.items() if v is not None})
