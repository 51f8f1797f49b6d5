"""Queries and moves of jobs. The API moves a job's own row only; `advance` does what follows from it for its lots."""

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from domain.budget import extended
from domain.errors import Conflict, Invalid, NotFound
from domain.job import Budget, Objective
from domain.states import JobState
from store.blob_rows import drop_refs
from store.events import tell
from store.inserts import insert
from store.moves import become as become
from store.moves import wrong_state
from store.pages import Page, page
from store.tables import EventRow, IdempotencyRow, JobRow, LotRow, ReportRow, TrialRow

UNFINISHED = tuple(str(s) for s in JobState if not s.finished)


def get_job(session: Session, workspace_id: str, job_id: str, *, lock: bool = False, share: bool = False) -> JobRow:
    """The job of this workspace. `lock` keeps others from moving it, `share` from deleting it, until the end."""
    query = select(JobRow).where(JobRow.id == job_id, JobRow.workspace_id == workspace_id)
    if lock or share:
        query = query.with_for_update(read=share, key_share=share).execution_options(populate_existing=True)
    job = session.scalar(query)
    if job is None:
        raise NotFound("job_not_found", "there is no such job in this workspace")
    return job


def list_jobs(
    session: Session, workspace_id: str, *, state: str | None = None, limit: int = 50, cursor: str | None = None
) -> Page[JobRow]:
    query = select(JobRow).where(JobRow.workspace_id == workspace_id)
    if state is not None:
        query = query.where(JobRow.state == state)
    return page(session, query, JobRow, limit=limit, cursor=cursor)


def create_job(
    session: Session, workspace_id: str, key: str | None, body_sha256: str, build: Callable[[], JobRow]
) -> tuple[JobRow, bool]:
    """The job of this idempotency key, and whether it was created now.

    The same key with the same body finds the job of the first request, also when the two run at once;
    with another body it is Invalid("idempotency_key_reused").
    """
    known = _job_of_key(session, workspace_id, key, body_sha256)
    if known is not None:
        return known, False
    with session.begin_nested() as attempt:
        job = build()
        session.add(job)
        session.flush()
        session.refresh(job)
        if key is None:
            tell(session, job.id, "job.state", {"state": job.state})
            return job, True
        row = {"workspace_id": workspace_id, "key": key, "body_sha256": body_sha256, "job_id": job.id}
        added = insert(session, IdempotencyRow).values(row).on_conflict_do_nothing().returning(IdempotencyRow.key)
        if session.scalar(added) is not None:
            tell(session, job.id, "job.state", {"state": job.state})
            return job, True
        attempt.rollback()  # another request with this key has won meanwhile
    won = _job_of_key(session, workspace_id, key, body_sha256)
    if won is None:
        raise Conflict("try_again", "another request with this Idempotency-Key is being answered; try again")
    return won, False


def pause(session: Session, workspace_id: str, job_id: str) -> JobRow:
    """Stop training after the next step, keep everything. Pausing a paused job changes nothing."""
    job = get_job(session, workspace_id, job_id, lock=True)
    if job.state != JobState.PAUSED:
        become(session, job, JobState.PAUSED)
    return job


def resume(session: Session, workspace_id: str, job_id: str) -> JobRow:
    """Go on where the job was paused: before its probe at WAITING, else at RUNNING. A job that runs is left alone."""
    job = get_job(session, workspace_id, job_id, lock=True)
    if job.state == JobState.PAUSED:
        target = JobState.WAITING if job.started_at is None else JobState.RUNNING
        become(session, job, target, attempt=0, not_before=0.0, woken_at=0.0)
    elif job.state not in (JobState.WAITING, JobState.PROBING, JobState.RUNNING):
        raise wrong_state(job, "cannot be resumed", legal=["PAUSED"])
    return job


def cancel(session: Session, workspace_id: str, job_id: str, keep: str) -> JobRow:
    """End the search. `keep="best"` finishes with the best trial so far, if there is one; "nothing" ends at once.

    Cancelling twice, or a job that is being finished with `keep="best"`, changes nothing.
    """
    job = get_job(session, workspace_id, job_id, lock=True)
    if job.state == JobState.CANCELLED or (job.state == JobState.FINISHING and keep == "best"):
        return job
    with_best = keep == "best" and job.best_trial_id is not None
    target = JobState.FINISHING if with_best and job.state in ("RUNNING", "PAUSED") else JobState.CANCELLED
    asked = "keep" if keep == "best" else "discard"
    become(session, job, target, stopped_by="user", cancel=asked, attempt=0, not_before=0.0, woken_at=0.0)
    return job


def extend_budget(session: Session, workspace_id: str, job_id: str, more: Mapping[str, float | None]) -> JobRow:
    """A larger budget, until the job is being finished. What is not given stays; nothing can shrink."""
    job = get_job(session, workspace_id, job_id, lock=True)
    if job.state not in (JobState.WAITING, JobState.PROBING, JobState.RUNNING, JobState.PAUSED):
        raise wrong_state(job, "cannot be given a larger budget; start a new job from its result")
    old = Budget.model_validate(job.spec["budget"])
    first = job.spec["objectives"][0] if "objectives" in job.spec else job.spec["objective"]
    new = extended(old, more, Objective.model_validate(first))
    if new != old:
        budget = new.model_dump(mode="json")
        set_facts(session, job, spec={**job.spec, "budget": budget}, woken_at=0.0)
        tell(session, job.id, "job.budget", budget)
    return job


def set_facts(session: Session, job: JobRow, **changes: Any) -> None:
    """Write columns that are no state: estimate, best_trial_id, result, …; the caller holds or has locked the job."""
    session.execute(update(JobRow).where(JobRow.id == job.id).values(changes))
    session.refresh(job)


def needers(session: Session, workspace_id: str, ref: str) -> list[str]:
    """Unfinished jobs that need this dataset, source or job: it cannot be deleted before they end."""
    query = select(JobRow.id, JobRow.dataset_id, JobRow.spec)
    query = query.where(JobRow.workspace_id == workspace_id, JobRow.state.in_(UNFINISHED)).order_by(JobRow.id)
    return [job_id for job_id, dataset_id, spec in session.execute(query) if ref in {dataset_id, *_refs(spec)}]


def check_unneeded(session: Session, workspace_id: str, ref: str) -> None:
    """Conflict("still_needed") with the list of the jobs that need it."""
    needed_by = needers(session, workspace_id, ref)
    if needed_by:
        detail = f"{ref} is needed by {', '.join(needed_by)}; cancel them or wait until they have finished"
        raise Conflict("still_needed", detail, needed_by=needed_by)


def delete_job(session: Session, workspace_id: str, job_id: str) -> list[str]:
    """Delete a finished job with all that belongs to it; returns blob keys to delete after the commit."""
    # Lots first, as everywhere: an `advance` may be ending the last of them.
    session.execute(select(LotRow.id).where(LotRow.job_id == job_id).order_by(LotRow.id).with_for_update())
    job = get_job(session, workspace_id, job_id, lock=True)
    if not JobState(job.state).finished:
        raise wrong_state(job, "cannot be deleted; cancel it first")
    if session.scalar(select(LotRow.id).where(LotRow.job_id == job.id, LotRow.state == "RUNNING").limit(1)):
        raise wrong_state(job, "still has a trial that is being stopped; try again in a moment")
    check_unneeded(session, workspace_id, job_id)
    trials = list(session.scalars(select(TrialRow.id).where(TrialRow.job_id == job_id)))
    keys = drop_refs(session, job_id, *trials)
    session.execute(delete(ReportRow).where(ReportRow.trial_id.in_(select(TrialRow.id).filter_by(job_id=job_id))))
    for row in (TrialRow, LotRow, EventRow, IdempotencyRow):
        session.execute(delete(row).where(row.job_id == job_id).execution_options(synchronize_session=False))
    session.execute(delete(JobRow).where(JobRow.id == job_id))
    return keys


def _refs(spec: dict[str, Any]) -> set[str]:
    others = {(spec.get("teacher") or {}).get("ref"), spec.get("source_dataset_id")}
    return {source["ref"] for source in spec.get("sources", ())} | {ref for ref in others if ref}


def _job_of_key(session: Session, workspace_id: str, key: str | None, body_sha256: str) -> JobRow | None:
    if key is None:
        return None
    row = session.get(IdempotencyRow, (workspace_id, key), populate_existing=True)
    if row is None:
        return None
    if row.body_sha256 != body_sha256:
        detail = "this Idempotency-Key was used for another request; take a new one"
        raise Invalid("idempotency_key_reused", detail, job_id=row.job_id)
    return session.get(JobRow, row.job_id)
