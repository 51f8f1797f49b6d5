"""`advance`: the whole orchestration of a job. Reads the rows and does the next legal thing.

Level-triggered and idempotent: it may run at any time, in any worker, any number of times at once. It runs after a
submit, after every lot, and from the sweep. It never touches a network, and asks the searcher outside any transaction;
the loser of a race inserts nothing.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.catalogue import catalogue
from domain.errors import Conflict, GraftError
from domain.heads import AT_ONCE
from domain.job import JobSpec
from domain.states import JobState, LotState, TrialState
from domain.teaching import N_ENSEMBLE, TEACHER, fixed_trials
from store.blob_rows import drop_ref
from store.clock import now
from store.events import tell
from store.leases import lock_name
from store.moves import become
from store.session import after_commit
from store.tables import JobRow, TrialRow
from store.trials import (
    TrialSketch,
    borrowed_blobs,
    insert_lot,
    lock_trials,
    lots_of,
    next_number,
    rests,
    rung,
    set_trial_facts,
    sketch_trials,
    trials_of_lot,
    trials_with_blobs,
)
from store.workers import live_workers
from worker.budgets import is_late, why_spent
from worker.context import Context
from worker.proposals import propose_lot
from worker.repeats import leading, seeds_of_one_recipe
from worker.rungs import promoted
from worker.searches import SEARCHES
from worker.standing import worth_keeping
from worker.teachers import outlook

log = logging.getLogger(__name__)

RING_AGAIN_S = 30.0  # a lot that waits is told of again
OPEN = (LotState.WAITING, LotState.RUNNING)
ASKS_FOR_S = 10.0  # as long a worker without a lot waits for another one that is asking
SAME_FAILURES = 3  # first trials that all fail alike end the job


@dataclass(frozen=True, slots=True)
class Plan:
    """What the rows ask for."""

    spec: JobSpec
    first: int  # next free trial number
    n_places: int  # lots that may be opened now
    n_new: int  # new trials that the budget allows
    n_each: int  # of them, most in one lot: every worker is to have some
    resting: bool  # whether trials rest at a rung: some may go on now
    spent: bool  # nothing runs, and no new trial is allowed
    waiting: tuple[str, ...]  # lots inserted before
    unheard: frozenset[str]  # those of them that nobody was told of for a while


def advance(context: Context, job_id: str, *, take: bool = False) -> str | None:
    """Do the next legal thing for a job, and ring for its lots that wait.

    With `take`, one of them is not rung for but returned, for the caller to train.
    """
    mine: str | None = None

    def ring(lot_id: str) -> None:
        """As soon as it is committed: the rest may take long, or fail."""
        nonlocal mine
        if take and mine is None:
            mine = lot_id
        else:
            context.doorbell.wake("run_lot", lot_id)

    try:
        with context.transaction() as session:
            job = session.get(JobRow, job_id, populate_existing=True)
            plan = _settle(context, session, job) if job is not None else None
        if plan is None:
            return None
        mine = next(iter(plan.waiting), None) if take else None
        for lot_id in plan.unheard - {mine}:
            ring(lot_id)
        n_promoted = (
            promoted(context, job_id, plan.spec, plan.n_places, ring, last=plan.spent) if plan.resting else 0
        )  # fmt: skip
        if plan.resting and plan.spent and not n_promoted:
            _end_at_rest(context, job_id)
        n_places = plan.n_places - n_promoted
        asked = _ask(context, job_id, plan, n_places, ring, wait=take) if plan.n_new and n_places > 0 else "done"
        if asked == "late" and take and mine is None:
            return advance(context, job_id, take=True)  # what the other one asked for is to be seen
    except Conflict as moved:  # by another process, between our reading and our writing: it has done our work
        log.info("%s", moved.detail)
    return mine


def _settle(context: Context, session: Session, job: JobRow) -> Plan | None:
    state = JobState(job.state)
    if state in (JobState.WAITING, JobState.PROBING):
        if job.lease_until is None:
            after_commit(session, partial(context.doorbell.wake, "probe_job", job.id))
        return None
    if state.finished or state == JobState.FINISHING:
        _cancel_waiting(session, job.id)
        _free(context, session, job)
        if state == JobState.FINISHING and not lots_of(session, job.id, [LotState.RUNNING]):
            after_commit(session, partial(context.doorbell.wake, "finish_job", job.id))
        return None
    if state != JobState.RUNNING:
        return None
    spec = JobSpec.model_validate(job.spec)
    trials = sketch_trials(session, job.id)
    _free(context, session, job)
    if _why_over(session, job, spec, trials) is not None:
        _end_if_over(context, session, job)
        return None
    open_lots = lots_of(session, job.id, OPEN)
    n_parallel = spec.parallel or max(1, len(live_workers(session, "trials", 3 * context.settings.heartbeat_s)))
    s_per_trial = float((job.estimate or {}).get("s_per_trial", 0.0))
    ahead = 2 if s_per_trial < context.settings.ask_ahead_below_s else 1
    # Nothing is searched before there is somebody to learn from.
    n_fixed = len(fixed_trials(spec, catalogue())) if outlook(spec, trials) == "later" else None
    most = [limit - len(trials) for limit in (spec.budget.trials, n_fixed) if limit is not None]
    n_places = max(0, n_parallel * ahead - len(open_lots))
    n_new = max(0, min((n_places * AT_ONCE, *most)))
    at = float(session.scalar(select(now())) or 0.0)
    waiting = [lot for lot in open_lots if lot.state == LotState.WAITING and lot.not_before <= at]
    # Messages would pile up while every worker is busy for an hour; a job that was resumed just now waits for nothing.
    unheard = [lot.id for lot in waiting if job.woken_at == 0.0 or lot.woken_at <= at - RING_AGAIN_S]
    if unheard:
        unheard = rung(session, unheard)
    return Plan(
        spec, first=max((t.number for t in trials), default=-1) + 1, n_places=n_places, n_new=n_new,
        n_each=max(1, min((AT_ONCE, *(left // n_parallel for left in most)))),
        resting=bool(lots_of(session, job.id, [LotState.PAUSED])),
        spent=not open_lots and n_new == 0,
        waiting=tuple(lot.id for lot in sorted(waiting, key=lambda lot: lot.created_at)), unheard=frozenset(unheard),
    )  # fmt: skip


def _why_over(session: Session, job: JobRow, spec: JobSpec, trials: list[TrialSketch]) -> str | None:
    """What ends the search: a part of the budget, or failures; None while it goes on."""
    if outlook(spec, trials) == "never":
        return "failures"
    finished = [t for t in trials if TrialState(t.state).finished]
    failed = [(t.error or {}).get("code") for t in finished if t.state == TrialState.FAILED]
    some_work = len(failed) < len(finished) or any(t.state == TrialState.PAUSED for t in trials)
    if len(failed) >= SAME_FAILURES and not some_work and len(set(failed)) == 1:
        return "failures"
    return why_spent(session, job, spec, trials) or ("time" if is_late(session, job, spec) else None)


def _end_if_over(context: Context, session: Session, job: JobRow) -> None:
    """End the search, if the budget as it is now is spent: it may have been extended since it was read."""
    _hold(session, job)
    spec, trials = JobSpec.model_validate(job.spec), sketch_trials(session, job.id)
    over = _why_over(session, job, spec, trials)
    if job.state == JobState.RUNNING and over is not None:
        error = _untaught(session, job, trials) if outlook(spec, trials) == "never" else None
        _end(context, session, job, trials, over, error)


def _hold(session: Session, job: JobRow) -> None:
    """Read the job again and lock it, after its lots that are to be moved: until the end of this transaction nobody
    extends its budget, adds a trial or promotes one."""
    lots_of(session, job.id, [LotState.WAITING, LotState.PAUSED], lock=True)
    session.get_one(JobRow, job.id, with_for_update={"key_share": True}, populate_existing=True)


def _end(
    context: Context, session: Session, job: JobRow, trials: list[TrialSketch], over: str,
    error: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """No more trials: wait for those that run (they are told to stop), then finish with the best, if there is one."""
    _cancel_waiting(session, job.id)
    if lots_of(session, job.id, [LotState.RUNNING]):
        return
    if any(t.state == TrialState.COMPLETE and t.anchor != TEACHER for t in trials):
        become(session, job, JobState.FINISHING, stopped_by=over, attempt=0, not_before=0.0)
        after_commit(session, partial(context.doorbell.wake, "finish_job", job.id))
        return
    errors = [t.error for t in trials if t.error]
    if error is None and errors:
        last = errors[-1]
        detail = f"no trial was completed; the last one: {last['detail']}"
        error = {"code": "every_trial_failed", "detail": detail, "cause": last["code"]}
    elif error is None:
        error = {"code": "budget_too_small", "detail": "the budget ended before the first trial was completed"}
    become(session, job, JobState.FAILED, stopped_by=over, error=error)


def _untaught(session: Session, job: JobRow, trials: list[TrialSketch]) -> dict[str, Any]:
    """The trials that were to teach have all ended, and none of them can: what was asked for cannot be searched."""
    last = next((t.error for t in reversed(trials) if t.error), None)
    why = f"; the last one that failed: {last['detail']}" if last else ""
    detail = f"none of the trials that were to teach was completed{why}"
    tell(session, job.id, "job.log", {"text": detail})
    return {"code": "no_teacher", "detail": detail} | ({"cause": last["code"]} if last else {})


def _end_at_rest(context: Context, job_id: str) -> None:
    """All that the budget allows has run, and what rests at a rung may go no further: the search is over."""
    with context.transaction() as session:
        job = session.get_one(JobRow, job_id)
        _hold(session, job)
        trials = sketch_trials(session, job_id)
        limit = JobSpec.model_validate(job.spec).budget.trials
        spent = limit is not None and len(trials) >= limit  # it may have been extended
        if job.state == JobState.RUNNING and spent and not lots_of(session, job_id, OPEN):
            _end(context, session, job, trials, "trials")


def _cancel_waiting(session: Session, job_id: str) -> None:
    """What waits will not run any more; what rests at a rung goes no further, and keeps what it has shown."""
    for lot in lots_of(session, job_id, [LotState.WAITING, LotState.PAUSED], lock=True):
        for trial in trials_of_lot(session, lot.id):
            if not TrialState(trial.state).finished:
                become(session, trial, TrialState.PRUNED if rests(trial) else TrialState.CANCELLED)
        become(session, lot, LotState.DONE)


def _free(context: Context, session: Session, job: JobRow) -> None:
    """Free the weights of ended trials but for the best, the front and the anchors; resume points go with their trial.

    A cancelled job keeps nothing. One that failed while it was being finished keeps what it had. What teaches a trial
    that is not over has a reference of that trial's own.
    """
    spec = JobSpec.model_validate(job.spec)
    if spec.teacher is not None and spec.teacher.trained_here:
        for key, trial_id in borrowed_blobs(session, job.id):
            for dead in drop_ref(session, key, trial_id):
                after_commit(session, partial(context.blobs.delete, dead))
    ended = trials_with_blobs(session, job.id)  # before the best: a trial that ends in between is not among them
    kept = _kept(session, job, spec, ended) if ended and job.state != JobState.CANCELLED else set()
    dead_weight = [t.id for t in ended if t.id not in kept or t.resume_blob is not None]
    # What others free now is left to them while the job goes on, and looked at again by the next one.
    going = job.state == JobState.RUNNING
    for trial in lock_trials(session, dead_weight, skip_locked=going) if dead_weight else ():
        columns = ["resume_blob"]
        if trial.id not in kept:
            columns += ["checkpoint_blob", "predictions_blob"]
        gone = {c: key for c in columns if (key := getattr(trial, c)) is not None}
        for key in gone.values():
            for dead in drop_ref(session, key, trial.id):
                after_commit(session, partial(context.blobs.delete, dead))
        if gone:
            set_trial_facts(session, trial, **dict.fromkeys(gone))


def _kept(session: Session, job: JobRow, spec: JobSpec, ended: Sequence[TrialRow]) -> set[str]:
    """The trials whose weights are worth keeping while the job is what it is."""
    limit = spec.keep_top
    if job.state == JobState.RUNNING and spec.teacher is not None and spec.teacher.kind == "ensemble":
        limit = max(limit, N_ENSEMBLE)
    anchors = {t.id for t in ended if t.anchor is not None}
    kept = worth_keeping(session, job.id, spec, limit) | anchors
    if JobState(job.state).finished:  # what was handed back may be no trial's best value: a mean, or an anchor
        return kept | {job.best_trial_id} if job.best_trial_id is not None else kept
    return kept | {t.id for t in leading(session, job.id, spec)} | seeds_of_one_recipe(ended)


def _ask(
    context: Context, job_id: str, plan: Plan, n_places: int, ring: Callable[[str], None], *, wait: bool
) -> Literal["done", "late", "busy"]:  # fmt: skip
    """New lots for the free places, unless another process has asked since the rows were read ("late"), or is asking
    ("busy", after a while if we `wait`): there is one answer for a number, so two that ask at once do one's work."""
    with context.reading() as turn:
        if not lock_name(turn, f"ask {job_id}", wait_s=ASKS_FOR_S if wait else 0.0):
            return "busy"
        with context.reading() as session:  # as it is now, and not as it was before we waited
            if next_number(session, job_id) != plan.first:
                return "late"
        number, end = plan.first, plan.first + plan.n_new
        for _ in range(n_places):
            if number >= end:
                break
            lot_id, n_trials = _insert(context, job_id, plan, number, min(plan.n_each, end - number))
            if lot_id is None:
                break
            ring(lot_id)
            number += n_trials
    return "done"


def _insert(context: Context, job_id: str, plan: Plan, number: int, most: int) -> tuple[str | None, int]:
    """Insert a lot of new trials from `number` on, and say how many; None if nothing is to be proposed, or another
    process was faster."""
    with SEARCHES.of(job_id, plan.spec) as search:
        try:
            new = propose_lot(context, job_id, plan.spec, search, number, most)
        except Exception as error:  # the same history fails the same way again: the search is at its end
            log.warning("%s: no recipe for trial %d", job_id, number, exc_info=not isinstance(error, GraftError))
            _give_in(context, job_id, error)
            return None, 0
        lot = None
        try:
            with context.transaction() as session:
                lot = insert_lot(session, job_id, new)
        finally:
            if lot is None:
                for trial in new:
                    search.forget(trial.number)
    return (lot.id, len(new)) if lot is not None else (None, 0)


def _give_in(context: Context, job_id: str, error: Exception) -> None:
    """Nothing more can be proposed: the job ends with what it has."""
    body = {"code": "search_failed", "detail": f"{type(error).__name__}: {error}"}
    if isinstance(error, GraftError):
        body = {"code": error.code, "detail": error.detail}
    with context.transaction() as session:
        job = session.get_one(JobRow, job_id)
        if job.state == JobState.RUNNING:
            _end(context, session, job, sketch_trials(session, job_id), "failures", body)
