"""How a job stands: trials done, share of the budget, time spent and time left, worked out from rows alone."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.schemas.job import Best, Job, LimitBound, Progress, SourceInJob, Spec
from api.schemas.page import moment, moment_or_none
from domain.job import Budget, JobSpec
from domain.states import JobState, TrialState
from store.clock import now
from store.tables import JobRow, TrialRow
from store.trials import count_states

_DONE = tuple(str(s) for s in TrialState if s.finished and s != TrialState.CANCELLED)
N_CHEAP = 1  # the first trial is a linear probe, whose pace says nothing about the others
_CLOSED = (JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED)


def show_jobs(session: Session, rows: Sequence[JobRow]) -> list[Job]:
    """Jobs with their progress: three queries for any number of them."""
    counts = count_states(session, [row.id for row in rows])
    wanted = [row.best_trial_id for row in rows if row.best_trial_id]
    best = {t.id: t for t in session.scalars(select(TrialRow).where(TrialRow.id.in_(wanted)))} if wanted else {}
    at = float(session.scalar(select(now())) or 0.0)
    return [_show(row, counts[row.id], best.get(row.best_trial_id or ""), at) for row in rows]


def show_job(session: Session, row: JobRow) -> Job:
    return show_jobs(session, [row])[0]


def elapsed_s(row: JobRow, at: float) -> float:
    """Wall time from the start to the end, or until `at`, without the pauses."""
    if row.started_at is None:
        return 0.0
    end = row.finished_at if row.finished_at is not None else at
    paused = row.paused_s + (max(end - row.paused_at, 0.0) if row.paused_at is not None else 0.0)
    return max(end - row.started_at - paused, 0.0)


def spent_share(budget: Budget, n_done: int, elapsed: float, cost_s: float = 0.0) -> float:
    """The largest of the shares of the budget that are spent, at most 1. How far a target is nobody can tell."""
    shares = [0.0]
    if budget.trials is not None:
        shares.append(n_done / budget.trials)
    if budget.wall_s is not None:
        shares.append(elapsed / budget.wall_s)
    if budget.device_s is not None:
        shares.append(cost_s / budget.device_s)
    return min(max(shares), 1.0)


def left_s(
    budget: Budget, n_done: int, elapsed: float, estimate: dict[str, Any] | None, cost_s: float = 0.0
) -> float | None:
    """A guess at the wall time left: the budget's own time, or what the trials left, or the training left, will take at
    the pace so far, and the finish after it where the probe knows what that takes."""
    known = estimate or {}
    finish_s = float(known.get("finish_s") or 0.0)
    guesses: list[float] = []
    if budget.wall_s is not None:
        guesses.append(max(budget.wall_s - elapsed, 0.0))
    if budget.trials is not None:
        probed = known.get("s_per_trial")
        pace = elapsed / n_done if n_done > N_CHEAP or (n_done and probed is None) else probed
        if isinstance(pace, int | float):
            guesses.append(max(budget.trials - n_done, 0) * float(pace) + finish_s)
    if budget.device_s is not None:
        at_once = cost_s / elapsed if elapsed > 0 and cost_s > 0 else 1.0  # trials that train side by side
        guesses.append(max(budget.device_s - cost_s, 0.0) / at_once + finish_s)
    return min(guesses) if guesses else None


def _show(row: JobRow, counts: Counter[str], best: TrialRow | None, at: float) -> Job:
    spec = JobSpec.model_validate(row.spec)
    state = JobState(row.state)
    n_done = sum(counts[name] for name in _DONE)
    elapsed = elapsed_s(row, at)
    share = 1.0 if state is JobState.COMPLETE else spent_share(spec.budget, n_done, elapsed, row.cost_s)
    left = 0.0 if state in _CLOSED else left_s(spec.budget, n_done, elapsed, row.estimate, row.cost_s)
    if state is JobState.FINISHING:
        left = None  # what is left is the check on test and the export, which no budget measures
    return Job(
        id=row.id, name=row.name, dataset_id=row.dataset_id, state=state, spec=_show_spec(spec),
        progress=Progress(trials_done=n_done, trials_total=spec.budget.trials, by_state=dict(counts), share=share),
        best=None if best is None else _show_best(best), cost_s=row.cost_s, elapsed_s=elapsed, left_s=left,
        estimate=row.estimate, stopped_by=row.stopped_by, error=row.error, result=row.result,
        created_at=moment(row.created_at), started_at=moment_or_none(row.started_at),
        finished_at=moment_or_none(row.finished_at),
    )  # fmt: skip


def _show_best(trial: TrialRow) -> Best:
    return Best(
        trial_id=trial.id, number=trial.number, value=trial.value, anchor=trial.anchor, recipe=trial.recipe
    )  # fmt: skip


def _show_spec(spec: JobSpec) -> Spec:
    sources = [SourceInJob(ref=s.ref, backbone=s.backbone, kind=s.kind, licence=s.licence) for s in spec.sources]
    return Spec(
        task=spec.task, preset=spec.preset, sources=sources, teacher=spec.teacher.ref if spec.teacher else None,
        source_dataset_id=spec.source_dataset_id, space=spec.space, chosen=list(spec.chosen), budget=spec.budget,
        objective=spec.objective.name, objectives=[objective.name for objective in spec.objectives],
        limits={limit.objective: LimitBound(at_most=limit.at_most, at_least=limit.at_least) for limit in spec.limits},
        n_folds=spec.n_folds, sampler=spec.sampler, sampler_why=spec.sampler_why, pruner=spec.pruner,
        fidelity=spec.fidelity, anchors=spec.anchors, parallel=spec.parallel, screen=spec.screen,
        learn_from=spec.learn_from, warm_starts=list(spec.warm_starts), keep_top=spec.keep_top, combine=spec.combine,
        confirm=spec.confirm, seed=spec.seed,
    )  # fmt: skip
