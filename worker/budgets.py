"""How a job stands against its budget, read from its rows."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.budget import Attempt, Standing, last_call_s, spent
from domain.confirming import REPEATED
from domain.fidelity import CHEAP
from domain.job import JobSpec
from domain.states import TrialState
from domain.teaching import TEACHER
from store.clock import now
from store.tables import JobRow
from store.trials import TrialSketch, sketch_trials


def elapsed_s(session: Session, job: JobRow) -> float:
    """Wall time of the search so far by the database's clock, pauses left out."""
    if job.started_at is None:
        return 0.0
    at = float(session.scalar(select(now())) or 0.0)
    paused = job.paused_s + (at - job.paused_at if job.paused_at is not None else 0.0)
    return max(0.0, at - job.started_at - paused)


def why_stop(session: Session, job: JobRow, spec: JobSpec) -> str | None:
    """Which part of the budget ends even the trials that run, if any; the number of trials does not."""
    budget = spec.budget.model_copy(update={"trials": None})
    watched = budget.target is not None or budget.patience is not None
    trials = sketch_trials(session, job.id) if watched else []
    return why_spent(session, job, spec.model_copy(update={"budget": budget}), trials)


def why_spent(session: Session, job: JobRow, spec: JobSpec, trials: list[TrialSketch]) -> str | None:
    """Which part of the job's budget is spent, if any."""
    budget = spec.budget
    standing = Standing(
        n_trials=sum(TrialState(t.state).finished for t in trials),
        wall_s=elapsed_s(session, job) if budget.wall_s is not None else 0.0,
        device_s=job.cost_s,
        attempts=attempts_of(trials) if budget.target is not None or budget.patience is not None else (),
    )
    return spent(budget, standing, until_s=_until_s(job, spec), direction=spec.objective.direction)


def left_for_training_s(session: Session, job: JobRow, spec: JobSpec) -> float | None:
    """Wall time until training has to end; None where no budget of time says when."""
    return None if spec.budget.wall_s is None else _until_s(job, spec) - elapsed_s(session, job)


def is_late(session: Session, job: JobRow, spec: JobSpec) -> bool:
    """Whether one more trial would be stopped for want of time before it has a first value. What runs goes on."""
    left_s = left_for_training_s(session, job, spec)
    return left_s is not None and left_s < float((job.estimate or {}).get("first_value_s", 0.0))


def attempts_of(trials: list[TrialSketch]) -> list[Attempt]:
    """The trials that were ranked, in the order in which they ended, or came to rest at a rung."""
    # Before any has come to its end, those that rest wait for company, and are not in vain.
    has_one = any(t.state == TrialState.COMPLETE and _is_searched(t) for t in trials)
    resting = [((t.rested_at, t.number), t) for t in trials if t.state == TrialState.PAUSED and t.rested_at is not None]
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    placed = [*(resting if has_one else []), *(((t.finished_at or 0.0, t.number), t) for t in ended)]
    return [
        Attempt(
            searched=_is_searched(t),
            value=t.value if t.state == TrialState.COMPLETE and t.anchor != TEACHER else None,
        )
        for _, t in sorted(placed, key=lambda entry: entry[0])
    ]


def _is_searched(trial: TrialSketch) -> bool:
    return trial.anchor is None and trial.origin not in (REPEATED, CHEAP)


def _until_s(job: JobRow, spec: JobSpec) -> float:
    if spec.budget.wall_s is None:
        return float("inf")
    finish_s = float((job.estimate or {}).get("finish_s", 0.0))
    return last_call_s(spec.budget.wall_s, finish_s, has_result=job.best_trial_id is not None)
