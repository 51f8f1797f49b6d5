"""What finished jobs of this installation know, read live: a deleted job or workspace is out of it at once."""

from collections import defaultdict
from collections.abc import Collection
from statistics import fmean

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.confirming import REPEATED
from domain.history import Meta, PastJob, PastTrial
from domain.job import Objective
from domain.teaching import TEACHER
from store.tables import JobRow, TrialRow

MOST = 200  # jobs that are looked at, the newest


def past_jobs(session: Session, *, task: str, workspace_id: str | None) -> list[PastJob]:
    """The COMPLETE jobs of a task in a workspace, the newest first; of every workspace if it is None."""
    query = select(JobRow.id, JobRow.spec, JobRow.estimate).where(JobRow.state == "COMPLETE")
    query = query.where(JobRow.spec["task"].as_string() == task)
    if workspace_id is not None:
        query = query.where(JobRow.workspace_id == workspace_id)
    found = []
    for job_id, spec, estimate in session.execute(query.order_by(JobRow.created_at.desc(), JobRow.id).limit(MOST)):
        try:
            meta = Meta.model_validate((estimate or {})["meta"])
            objective = Objective.model_validate(spec["objectives"][0])
        except (KeyError, ValidationError):  # a job of before there was a history, or of another version
            continue
        found.append(PastJob(id=job_id, meta=meta, direction=objective.direction))
    return found


def past_trials(session: Session, job_ids: Collection[str]) -> dict[str, list[PastTrial]]:
    """The COMPLETE trials of these jobs by number: all ran in full; the job's teacher is none of them.

    A recipe that was trained with several seeds is one trial, with the mean of its values.
    """
    query = (
        select(TrialRow)
        .where(TrialRow.job_id.in_(list(job_ids)), TrialRow.state == "COMPLETE", TrialRow.value.is_not(None))
        .where(TrialRow.anchor.is_distinct_from(TEACHER))
    )
    rows: dict[tuple[str, int], tuple[TrialRow, list[float]]] = {}
    for trial in session.scalars(query.order_by(TrialRow.job_id, TrialRow.number)):
        number = int(trial.attrs["of"]) if trial.attrs.get("origin") == REPEATED else trial.number
        rows.setdefault((trial.job_id, number), (trial, []))[1].append(float(trial.value or 0.0))
    found: defaultdict[str, list[PastTrial]] = defaultdict(list)
    for (job_id, number), (trial, values) in rows.items():
        found[job_id].append(
            PastTrial(
                number=number, values=trial.values, value=fmean(values), backbone=str(trial.recipe["backbone"]),
                anchor=trial.anchor,
            )
        )  # fmt: skip
    return dict(found)
