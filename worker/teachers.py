"""Who teaches a trial: chosen when its lot is first claimed, written down with it, and kept while it needs them."""

from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from domain.catalogue import catalogue
from domain.errors import GraftError
from domain.job import JobSpec
from domain.lot import TeacherFiles
from domain.recipe import Recipe
from domain.states import TrialState
from domain.teaching import N_ENSEMBLE, TEACHER, fixed_trials, needs
from store.blob_rows import add_ref
from store.cache import fetch_blob
from store.tables import TrialRow
from store.trials import TrialSketch, best_trials, set_trial_facts, trials_by_id, trials_of
from worker.context import Context

MAX_TRIES = 5  # the best trial may lose its weights to a better one while it is being chosen


def outlook(spec: JobSpec, trials: Sequence[TrialSketch]) -> Literal["ready", "later", "never"]:
    """Whether there is somebody to teach by now, given the trials of the job so far."""
    teacher = spec.teacher
    if teacher is None or not teacher.trained_here:
        return "ready"
    fixed = [t for t in trials if t.anchor is not None]
    to_come = len(fixed) < len(fixed_trials(spec, catalogue())) or not all(TrialState(t.state).finished for t in fixed)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if teacher.kind == "source":
        ready = any(t.anchor == TEACHER for t in complete)
    elif teacher.kind == "ensemble":
        ready = len(complete) >= (N_ENSEMBLE if to_come else 1)
    else:
        ready = bool(complete)
    if ready:
        return "ready"
    return "later" if to_come else "never"


def appoint(session: Session, spec: JobSpec, trials: Sequence[TrialRow]) -> None:
    """Choose who teaches those of `trials` that want a teacher. Whom a trial has it keeps, however often it resumes."""
    for trial in trials:
        wanted = "teacher" in needs(Recipe.model_validate(trial.recipe), catalogue())
        if wanted and "teachers" not in trial.attrs:
            set_trial_facts(session, trial, attrs={**trial.attrs, "teachers": _chosen(session, spec, trial)})


def teacher_files(context: Context, spec: JobSpec, trial: TrialRow) -> tuple[TeacherFiles, ...]:
    """The networks that teach `trial`, on this machine."""
    if "teachers" not in trial.attrs:
        return ()
    appointed: list[dict[str, Any]] = trial.attrs["teachers"]
    if not appointed:
        raise GraftError("no_teacher", "no trial that could teach this one has kept its weights")
    if spec.teacher is not None and spec.teacher.recipe is not None:
        recipes = {spec.teacher.trial_id: spec.teacher.recipe}
    else:
        with context.reading() as session:
            rows = trials_by_id(session, [teacher["trial_id"] for teacher in appointed])
        recipes = {row.id: Recipe.model_validate(row.recipe) for row in rows}
    return tuple(
        TeacherFiles(weights=_fetched(context, teacher["blob"]), recipe=recipes[teacher["trial_id"]])
        for teacher in appointed
    )


def finished_teacher(context: Context, spec: JobSpec) -> tuple[TeacherFiles, ...]:
    """The teacher that was there before the job, on this machine; nobody if the job trains its own."""
    teacher = spec.teacher
    if teacher is None or teacher.blob is None or teacher.recipe is None:
        return ()
    return (TeacherFiles(weights=_fetched(context, teacher.blob), recipe=teacher.recipe),)


def _fetched(context: Context, blob: str) -> str:
    return str(fetch_blob(context.blobs, blob, context.cache / blob.split("/", 1)[0] / "weights"))


def _chosen(session: Session, spec: JobSpec, trial: TrialRow) -> list[dict[str, str | None]]:
    teacher = spec.teacher
    if teacher is None:
        return []
    if not teacher.trained_here:
        return [{"trial_id": teacher.trial_id, "blob": teacher.blob}]
    for _ in range(MAX_TRIES):
        found = _candidates(session, spec, trial.job_id)
        try:
            with session.begin_nested():  # a reference of the trial's own: the weights outlive their own trial's
                for row in found:
                    add_ref(session, str(row.checkpoint_blob), trial.id)
        except IntegrityError:  # freed meanwhile, for a better one
            session.expire_all()
        else:
            return [{"trial_id": row.id, "blob": row.checkpoint_blob} for row in found]
    return []


def _candidates(session: Session, spec: JobSpec, job_id: str) -> list[TrialRow]:
    assert spec.teacher is not None
    if spec.teacher.kind == "source":
        found = [t for t in trials_of(session, job_id, [TrialState.COMPLETE]) if t.anchor == TEACHER]
    else:
        limit = N_ENSEMBLE if spec.teacher.kind == "ensemble" else 1
        found = best_trials(session, job_id, direction=spec.objective.direction, limit=limit)
    return [t for t in found if t.checkpoint_blob is not None]
