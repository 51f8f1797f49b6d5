"""Jobs: submit, watch, pause, resume, cancel, extend, delete."""

import hashlib
import json
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response

from api.afterwards import free, wake
from api.auth import CallerDep
from api.ids import JobId
from api.json_body import StrictRoute
from api.progress import show_job, show_jobs
from api.schemas.job import BudgetMore, Cancel, Job, JobCreate
from api.schemas.page import Cursor, Limit, Page
from api.schemas.problem import problems
from api.schemas.trial import Trial, show_trial
from api.site import SiteDep
from api.submit import resolve
from api.transactions import ReadDep, WriteDep
from domain.errors import Invalid
from domain.ids import new_id
from domain.states import JobState, TrialState
from store import jobs
from store.tables import JobRow
from store.trials import list_trials

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

_KEY_HINT = "Any text of your own, at most 200 characters; sending the same request again then finds the same job."
_MOVE = problems(401, 404, 409, 503)
_MOVE_WITH_BODY = problems(400, 401, 404, 409, 413, 415, 422, 503)
_REPLAYED: dict[int | str, dict[str, Any]] = {
    200: {"model": Job, "description": "This Idempotency-Key was used before with the same body: the job of then"}
}


@router.post(
    "", status_code=201, summary="Submit a job", response_model=Job,
    responses=_REPLAYED | problems(400, 401, 404, 409, 413, 415, 422, 503),
)  # fmt: skip
def create_job(
    body: JobCreate, response: Response, session: WriteDep, site: SiteDep, caller: CallerDep,
    idempotency_key: Annotated[str | None, Header(max_length=200, description=_KEY_HINT)] = None,
) -> Job:  # fmt: skip
    """Checked against the dataset and the catalogue, then written; a worker takes it up at once."""

    def build() -> JobRow:
        spec = resolve(session, caller.workspace_id, body, pool_history=site.settings.pool_history)
        return JobRow(
            id=new_id("job"), workspace_id=caller.workspace_id, name=body.name or f"job on {body.dataset_id}",
            dataset_id=body.dataset_id, state=str(JobState.WAITING), spec=spec.model_dump(mode="json"),
        )  # fmt: skip

    key = _check_key(idempotency_key)
    row, created = jobs.create_job(session, caller.workspace_id, key, _digest(body), build)
    if created:
        session.refresh(row)
        wake(session, site, "advance", row.id)
    else:
        response.status_code = 200
        response.headers["Idempotent-Replayed"] = "true"
    response.headers["Location"] = f"/v1/jobs/{row.id}"
    return show_job(session, row)


@router.get("", summary="List jobs", response_model=Page[Job], responses=problems(400, 401, 422, 503))
def list_jobs(
    session: ReadDep, caller: CallerDep, state: JobState | None = None, limit: Limit = 50, cursor: Cursor = None
) -> Page[Job]:
    """The jobs of the workspace, newest first."""
    found = jobs.list_jobs(session, caller.workspace_id, state=state, limit=limit, cursor=cursor)
    return Page(items=show_jobs(session, found.items), next_cursor=found.next_cursor)


@router.get("/{job}", summary="Show a job", response_model=Job, responses=problems(401, 404, 503))
def get_job(session: ReadDep, caller: CallerDep, job: JobId) -> Job:
    """State, progress, best so far, time and cost spent, time left; the result when it is COMPLETE."""
    return show_job(session, jobs.get_job(session, caller.workspace_id, job))


@router.delete("/{job}", status_code=204, summary="Delete a job", responses=_MOVE)
def delete_job(session: WriteDep, site: SiteDep, caller: CallerDep, job: JobId) -> None:
    """With its trials, checkpoints and bundle. 409 while it runs, or while another job starts from it (the list is in
    `needed_by`)."""
    free(session, site, jobs.delete_job(session, caller.workspace_id, job))


@router.post("/{job}/pause", summary="Pause a job", response_model=Job, responses=_MOVE)
def pause_job(session: WriteDep, site: SiteDep, caller: CallerDep, job: JobId) -> Job:
    """Training stops at the next step and is kept; nothing is lost."""
    return _moved(session, site, jobs.pause(session, caller.workspace_id, job))


@router.post("/{job}/resume", summary="Resume a job", response_model=Job, responses=_MOVE)
def resume_job(session: WriteDep, site: SiteDep, caller: CallerDep, job: JobId) -> Job:
    """Goes on where it was paused."""
    return _moved(session, site, jobs.resume(session, caller.workspace_id, job))


@router.post("/{job}/cancel", summary="Cancel a job", response_model=Job, responses=_MOVE_WITH_BODY)
def cancel_job(session: WriteDep, site: SiteDep, caller: CallerDep, job: JobId, body: Cancel | None = None) -> Job:
    """`best`: it is finished with the best trial so far and becomes COMPLETE, stopped by the user. `nothing`: it is
    CANCELLED at once. With no finished trial both mean the same."""
    keep = (body or Cancel()).keep
    return _moved(session, site, jobs.cancel(session, caller.workspace_id, job, keep))


@router.patch("/{job}/budget", summary="Extend a budget", response_model=Job, responses=_MOVE_WITH_BODY)
def extend_budget(session: WriteDep, site: SiteDep, caller: CallerDep, job: JobId, body: BudgetMore) -> Job:
    """More trials, more time, more patience or a further target, until the job is being finished. Budgets never
    shrink."""
    row = jobs.extend_budget(session, caller.workspace_id, job, body.model_dump())
    return _moved(session, site, row)


@router.get(
    "/{job}/trials", summary="List the trials of a job", response_model=Page[Trial],
    responses=problems(400, 401, 404, 422, 503), tags=["trials"],
)  # fmt: skip
def list_trials_of_job(
    session: ReadDep, caller: CallerDep, job: JobId, state: TrialState | None = None, limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Trial]:  # fmt: skip
    """By number: the anchors first."""
    jobs.get_job(session, caller.workspace_id, job)
    found = list_trials(session, caller.workspace_id, job, state=state, limit=limit, cursor=cursor)
    return Page(items=[show_trial(row) for row in found.items], next_cursor=found.next_cursor)


def _moved(session: WriteDep, site: SiteDep, row: JobRow) -> Job:
    wake(session, site, "advance", row.id)
    return show_job(session, row)


def _check_key(key: str | None) -> str | None:
    if key is not None and (not key.strip() or not key.isprintable()):
        raise Invalid("validation_error", "header.Idempotency-Key: 1 to 200 printable characters")
    return key


def _digest(body: JobCreate) -> str:
    """Equal for equal requests, however their JSON was written."""
    text = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
