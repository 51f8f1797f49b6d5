"""Queries and moves of lots, trials and their curves."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.errors import NotFound
from domain.ids import new_id
from domain.states import JobState, LotState, TrialState
from domain.teaching import TEACHER
from domain.trial import Report
from store.clock import now
from store.events import add_cost, tell
from store.inserts import insert
from store.leases import hold
from store.moves import become as become
from store.pages import Page, read_cursor, write_cursor
from store.session import finite
from store.tables import BlobRefRow, JobRow, LotRow, ReportRow, TrialRow


@dataclass(frozen=True, slots=True)
class NewTrial:
    """A trial as the searcher asks for it."""

    number: int
    values: dict[str, Any]
    recipe: dict[str, Any]  # domain.recipe.Recipe, dumped
    anchor: str | None = None
    attrs: dict[str, Any] = field(default_factory=dict)


def insert_lot(session: Session, job_id: str, trials: Sequence[NewTrial]) -> LotRow | None:
    """A lot of new trials. None, and nothing inserted, if one of the numbers is taken or the job runs no more.

    It counts as told of: the caller rings for it, or trains it, once this is committed.
    Two processes may ask for the same numbers at once; the loser drops its proposals and reads the rows again.
    """
    job = session.get(JobRow, job_id)
    if job is None:
        return None
    lot = LotRow(
        id=new_id("lot"), workspace_id=job.workspace_id, job_id=job_id, state=str(LotState.WAITING), woken_at=now()
    )
    rows = [
        TrialRow(
            id=new_id("trial"), workspace_id=job.workspace_id, job_id=job_id, lot_id=lot.id, number=new.number,
            anchor=new.anchor, state=str(TrialState.WAITING), values=new.values, recipe=new.recipe, attrs=new.attrs,
        )
        for new in trials
    ]  # fmt: skip
    try:
        with session.begin_nested() as attempt:
            session.add(lot)
            session.flush()
            session.add_all(rows)
            session.flush()
            # Locked last, as everywhere: whoever ends the search either sees this lot or is seen here.
            session.refresh(job, with_for_update={"key_share": True})
            if job.state != JobState.RUNNING:
                attempt.rollback()
                return None
    except IntegrityError:
        return None
    for row in rows:
        body = {"trial_id": row.id, "number": row.number, "anchor": row.anchor, "values": row.values}
        tell(session, job_id, "trial.created", body)
    session.refresh(lot)
    return lot


def rests(trial: TrialRow) -> bool:
    """Whether a trial is PAUSED at a rung of its search, and not with its job."""
    return trial.state == TrialState.PAUSED and "rung" in trial.attrs


def promote(session: Session, job_id: str, number: int) -> LotRow | None:
    """The lot of a trial that rests at a rung, given back to be trained further from there.

    None if it rests no more, or its job does not run.
    """
    trial = session.scalar(select(TrialRow).where(TrialRow.job_id == job_id, TrialRow.number == number))
    if trial is None:
        return None
    locked: dict[str, Any] = {"with_for_update": {"key_share": True}, "populate_existing": True}
    lot = session.get_one(LotRow, trial.lot_id, **locked)
    job = session.get_one(JobRow, job_id, **locked)
    session.refresh(trial)
    if job.state != JobState.RUNNING or not rests(trial):
        return None
    kept = {name: fact for name, fact in trial.attrs.items() if name not in ("rung", "rested_at")}
    become(session, trial, TrialState.WAITING, attrs=kept | {"passed_rung": trial.attrs["rung"]})
    if lot.state == LotState.PAUSED:
        become(session, lot, LotState.WAITING, attempt=0, not_before=0.0, woken_at=now())
    return lot


def get_trial(session: Session, workspace_id: str, trial_id: str) -> TrialRow:
    trial = session.scalar(select(TrialRow).where(TrialRow.id == trial_id, TrialRow.workspace_id == workspace_id))
    if trial is None:
        raise NotFound("trial_not_found", "there is no such trial in this workspace")
    return trial


def trials_of(session: Session, job_id: str, states: Collection[str] | None = None) -> list[TrialRow]:
    """The trials of a job by number, or those of them that are in `states`."""
    query = select(TrialRow).where(TrialRow.job_id == job_id).order_by(TrialRow.number)
    if states is not None:
        query = query.where(TrialRow.state.in_(list(states)))
    return list(session.scalars(query))


class TrialSketch(NamedTuple):
    """What deciding about a job needs of each of its trials, without recipes and values."""

    id: str
    number: int
    state: str
    anchor: str | None
    error: dict[str, Any] | None
    value: float | None
    finished_at: float | None
    origin: str | None  # where a trial comes from that is neither fixed nor the sampler's
    of: int | None  # the trial that it repeats or continues
    rested_at: float | None = None  # since when it rests at a rung, if it does


def sketch_trials(session: Session, job_id: str) -> list[TrialSketch]:
    """The trials of a job by number, in short."""
    columns = select(
        TrialRow.id, TrialRow.number, TrialRow.state, TrialRow.anchor, TrialRow.error, TrialRow.value,
        TrialRow.finished_at, TrialRow.attrs["origin"].as_string(), TrialRow.attrs["of"].as_integer(),
        TrialRow.attrs["rested_at"].as_float(),
    )  # fmt: skip
    rows = session.execute(columns.where(TrialRow.job_id == job_id).order_by(TrialRow.number))
    return [TrialSketch(*row) for row in rows]


def next_number(session: Session, job_id: str) -> int:
    """The number of the trial that would be inserted next."""
    last = session.scalar(select(func.max(TrialRow.number)).where(TrialRow.job_id == job_id))
    return 0 if last is None else last + 1


def trials_by_id(session: Session, trial_ids: Collection[str]) -> list[TrialRow]:
    return list(session.scalars(select(TrialRow).where(TrialRow.id.in_(list(trial_ids))).order_by(TrialRow.number)))


def trials_with_blobs(session: Session, job_id: str) -> list[TrialRow]:
    """Ended trials of a job that still hold bytes."""
    ended = [str(s) for s in TrialState if s.finished]
    held = or_(*(c.is_not(None) for c in (TrialRow.checkpoint_blob, TrialRow.predictions_blob, TrialRow.resume_blob)))
    query = select(TrialRow).where(TrialRow.job_id == job_id, TrialRow.state.in_(ended), held)
    return list(session.scalars(query.order_by(TrialRow.number)))


def lock_trials(session: Session, trial_ids: Collection[str], *, skip_locked: bool) -> list[TrialRow]:
    """These trials, locked; those that somebody else has locked are waited for, or skipped."""
    query = select(TrialRow).where(TrialRow.id.in_(list(trial_ids))).order_by(TrialRow.number)
    locked = query.with_for_update(key_share=True, skip_locked=skip_locked)
    return list(session.scalars(locked.execution_options(populate_existing=True)))


def borrowed_blobs(session: Session, job_id: str) -> list[tuple[str, str]]:
    """(key, trial) of the blobs that ended trials of a job still refer to and that are not their own."""
    ended = [str(s) for s in TrialState if s.finished]
    own = (TrialRow.checkpoint_blob, TrialRow.predictions_blob, TrialRow.resume_blob)
    query = (
        select(BlobRefRow.key, BlobRefRow.owner_id)
        .join(TrialRow, TrialRow.id == BlobRefRow.owner_id)
        .where(TrialRow.job_id == job_id, TrialRow.state.in_(ended))
        .where(*(BlobRefRow.key.is_distinct_from(column) for column in own))
    )
    return [(key, owner_id) for key, owner_id in session.execute(query)]


def waiting_lot(session: Session, job_id: str, *, lock: bool = False) -> str | None:
    """The lot of a running job that has waited longest and is due. `lock` it, unless somebody else is at it."""
    query = (
        select(LotRow.id)
        .join(JobRow, JobRow.id == LotRow.job_id)
        .where(
            LotRow.job_id == job_id,
            LotRow.state == LotState.WAITING,
            LotRow.not_before <= now(),
            JobRow.state == "RUNNING",
        )
        .order_by(LotRow.created_at, LotRow.id)
        .limit(1)
    )
    return session.scalar(query.with_for_update(of=LotRow, key_share=True, skip_locked=True) if lock else query)


def rung(session: Session, lot_ids: Collection[str]) -> list[str]:
    """Notes of these lots that a worker is told of them now; those that somebody is claiming are left out."""
    free = select(LotRow.id).where(LotRow.id.in_(list(lot_ids))).with_for_update(key_share=True, skip_locked=True)
    noted = update(LotRow).where(LotRow.id.in_(free)).values(woken_at=now()).returning(LotRow.id)
    return sorted(session.scalars(noted.execution_options(synchronize_session=False)))


def others_wait(session: Session, job_id: str) -> bool:
    """Does anything of another job wait for a worker of trials?"""
    lots = (
        select(LotRow.id)
        .join(JobRow, JobRow.id == LotRow.job_id)
        .where(
            LotRow.state == LotState.WAITING,
            LotRow.not_before <= now(),
            LotRow.job_id != job_id,
            JobRow.state == "RUNNING",
        )
    )
    jobs = select(JobRow.id).where(
        JobRow.id != job_id, JobRow.state.in_(["WAITING", "PROBING", "FINISHING"]), JobRow.not_before <= now(),
        JobRow.owner.is_(None),
    )  # fmt: skip
    return bool(session.scalar(select(or_(lots.exists(), jobs.exists()))))


def trials_of_lot(session: Session, lot_id: str) -> list[TrialRow]:
    return list(session.scalars(select(TrialRow).where(TrialRow.lot_id == lot_id).order_by(TrialRow.number)))


def list_trials(
    session: Session, workspace_id: str, job_id: str, *, state: str | None = None, limit: int = 50,
    cursor: str | None = None,
) -> Page[TrialRow]:  # fmt: skip
    """The trials of a job by number, page by page."""
    query = select(TrialRow).where(TrialRow.job_id == job_id, TrialRow.workspace_id == workspace_id)
    if state is not None:
        query = query.where(TrialRow.state == state)
    if cursor is not None:
        query = query.where(TrialRow.number > int(read_cursor(cursor, (int,))[0]))
    found = list(session.scalars(query.order_by(TrialRow.number).limit(limit + 1)))
    if len(found) <= limit:
        return Page(found, None)
    return Page(found[:limit], write_cursor(found[limit - 1].number))


def lots_of(
    session: Session, job_id: str, states: Collection[str] | None = None, *, lock: bool = False
) -> list[LotRow]:
    """The lots of a job. `lock` those that are to be moved, all at once and before their trials and their job."""
    query = select(LotRow).where(LotRow.job_id == job_id).order_by(LotRow.id)
    if states is not None:
        query = query.where(LotRow.state.in_(list(states)))
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    return list(session.scalars(query))


def reports_of(session: Session, trial_ids: Collection[str]) -> list[ReportRow]:
    """The curves of these trials, in the order in which they were trained."""
    query = select(ReportRow).where(ReportRow.trial_id.in_(list(trial_ids)))
    return list(session.scalars(query.order_by(ReportRow.trial_id, ReportRow.share, ReportRow.fold, ReportRow.step)))


def record_reports(session: Session, lot_id: str, fence: int, reports: Sequence[Report]) -> None:
    """Points of the curves of a lot's trials, written under its fence (LeaseLost otherwise).

    A trial that resumes walks part of its curve again: the same point is written over, never twice, and told again
    only if it differs.
    """
    hold(session, LotRow, lot_id, fence)
    trials = {row.id: row for row in trials_of_lot(session, lot_id)}
    told: list[tuple[TrialRow, dict[str, Any]]] = []
    for report in reports:
        trial = trials.get(report.trial_id)
        if trial is None:
            raise NotFound("trial_not_found", f"trial {report.trial_id} is not of lot {lot_id}")
        point = finite(report.model_dump(mode="json"))
        if _write_point(session, point):
            told.append((trial, point))
    for trial_id, report in {r.trial_id: r for r in reports}.items():
        set_trial_facts(session, trials[trial_id], share=report.share, cost_s=report.cost_s)
    for trial, point in told:
        tell(session, trial.job_id, "trial.report", {"number": trial.number, **point})


def set_trial_facts(session: Session, trial: TrialRow, **changes: Any) -> None:
    """Write columns that are no state: blobs, value, test, …; the caller holds the trial's lot or locked its job."""
    more_s = changes.get("cost_s", trial.cost_s) - trial.cost_s
    written = update(TrialRow).where(TrialRow.id == trial.id).values(changes).returning(TrialRow)
    session.scalar(written.execution_options(synchronize_session=False, populate_existing=True))
    if more_s:
        add_cost(session, trial.job_id, more_s)


def count_states(session: Session, job_ids: Collection[str]) -> dict[str, Counter[str]]:
    """How many trials of each job are in which state."""
    counts: dict[str, Counter[str]] = {job_id: Counter() for job_id in job_ids}
    query = select(TrialRow.job_id, TrialRow.state, func.count()).where(TrialRow.job_id.in_(list(job_ids)))
    for job_id, state, n in session.execute(query.group_by(TrialRow.job_id, TrialRow.state)):
        counts[job_id][state] = n
    return counts


def count_origin(session: Session, job_id: str, origin: str) -> int:
    """How many trials of a job came from there, as their attributes say."""
    query = select(func.count()).where(TrialRow.job_id == job_id, TrialRow.attrs["origin"].as_string() == origin)
    return int(session.scalar(query) or 0)


def best_trials(session: Session, job_id: str, *, direction: str, limit: int = 1) -> list[TrialRow]:
    """The best COMPLETE trials by value on val; of equals the earlier one. A source that was fine-tuned to teach is
    none of them: it is not what the job looks for."""
    best_first = TrialRow.value.desc() if direction == "maximize" else TrialRow.value.asc()
    query = select(TrialRow).where(*_looked_for(job_id)).order_by(best_first, TrialRow.number)
    return list(session.scalars(query.limit(limit)))


class Scored(NamedTuple):
    """What choosing among the COMPLETE trials of a job needs of each."""

    id: str
    number: int
    value: float
    metrics: dict[str, Any] | None


def scored_trials(session: Session, job_id: str) -> list[Scored]:
    """The trials that `best_trials` chooses from, by number."""
    columns = select(TrialRow.id, TrialRow.number, TrialRow.value, TrialRow.metrics)
    return [Scored(*row) for row in session.execute(columns.where(*_looked_for(job_id)).order_by(TrialRow.number))]


def _looked_for(job_id: str) -> tuple[ColumnElement[bool], ...]:
    return (
        TrialRow.job_id == job_id, TrialRow.state == "COMPLETE", TrialRow.value.is_not(None),
        TrialRow.anchor.is_distinct_from(TEACHER),
    )  # fmt: skip


def note_best(session: Session, job: JobRow, trial: TrialRow) -> bool:
    """This trial is the best so far; told when it is news."""
    changed = (
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.best_trial_id.is_distinct_from(trial.id))
        .values(best_trial_id=trial.id)
        .returning(JobRow)
    )
    if session.scalar(changed.execution_options(synchronize_session=False, populate_existing=True)) is None:
        return False
    body = {"trial_id": trial.id, "number": trial.number, "value": trial.value, "anchor": trial.anchor}
    tell(session, job.id, "job.best", body)
    return True


def _write_point(session: Session, point: dict[str, Any]) -> bool:
    """True if the point is new or has changed."""
    keys = ("trial_id", "fold", "phase", "step")
    facts = {name: point[name] for name in ("share", "value", "terms", "cost_s")}
    old = session.get(ReportRow, tuple(point[k] for k in keys), populate_existing=True)
    if old is not None and (old.share, old.value, old.terms) == (facts["share"], facts["value"], facts["terms"]):
        return False
    written = insert(session, ReportRow).values({k: point[k] for k in keys} | facts)
    session.execute(written.on_conflict_do_update(index_elements=list(keys), set_=facts))
    return True
