"""`run_lot`: claims a lot, has the warm trial process train it, and writes down what comes of it."""

import logging
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from domain.confirming import REPEATED
from domain.errors import GraftError, LeaseLost, Unavailable
from domain.fidelity import CHEAP
from domain.job import JobSpec
from domain.ports import BlobInfo
from domain.states import JobState, LotState, TrialState
from domain.trial import Report, TrialOutcome
from store.blob_rows import add_blob, drop_ref
from store.clock import now
from store.leases import hold
from store.moves import become
from store.session import after_commit
from store.tables import JobRow, LotRow, TrialRow
from store.trials import (
    note_best,
    others_wait,
    record_reports,
    rests,
    set_trial_facts,
    trials_of_lot,
)
from worker.advance import advance
from worker.ahead import read_ahead
from worker.budgets import is_late, why_stop
from worker.claims import Claimed, claim_lot, claim_next, lot_order
from worker.context import Context
from worker.crew import ChildDied
from worker.lease import Lease
from worker.searches import SEARCHES, read_history
from worker.standing import leader
from worker.wire import Ended, FirstStep, FromChild, Refused, Reported, Resumable, RunLot, Wish

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # at most one transaction of reports, and one look at the job's state, per second
RESUME_EVERY_S = 60.0
BACK_OFF_S = 2.0  # before a crashed lot is tried again, times the attempts so far


@dataclass
class Progress:
    """What has come from the trial process and is not written yet, and what it was told."""

    reports: list[Report] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    wishes: dict[str, tuple[Wish, str]] = field(default_factory=dict)  # trial -> (wish, why)
    # trial -> share up to which the pruner has let it go on: at first what its row says, whoever trained it so far
    asked: dict[str, float] = field(default_factory=dict)
    rungs: dict[str, float] = field(default_factory=dict)  # trial -> the rung where it is to rest
    looked_at: float = 0.0
    closed: bool = False  # nothing more is to be written: the lot is DONE, or rests at a rung

    def close(self) -> None:
        self.closed = True


def begin(claimed: Claimed) -> Progress:
    """The progress of a lot whose training begins, or goes on from where another worker left it."""
    return Progress(looked_at=time.monotonic(), asked={trial.id: trial.share for trial in claimed.trials})


def run_lot(context: Context, lot_id: str) -> None:
    """Train a lot, and then the next ones of its job, unless something else waits for this worker."""
    claimed = claim_lot(context, lot_id)
    if claimed is None:
        _report_stray(context, lot_id)
    while claimed is not None:
        _run(context, claimed)
        claimed = _continue(context, claimed.job_id)


def _run(context: Context, claimed: Claimed) -> None:
    scratch = context.cache / "scratch" / f"{claimed.lot_id}-{claimed.fence}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with Lease(context, LotRow, claimed.lot_id, claimed.fence) as lease:
            _train(context, claimed, lease, scratch)
    except LeaseLost as lost:
        log.warning("%s: stopped work that is no longer ours", lost.detail)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _continue(context: Context, job_id: str) -> Claimed | None:
    """The lot to train next without a message in between: one asked ahead, or else a new one."""
    if context.stopping.is_set():
        advance(context, job_id)
        return None
    with context.reading() as session:
        taken_up = others_wait(session, job_id)
        job = session.get_one(JobRow, job_id)
        late = is_late(session, job, JobSpec.model_validate(job.spec))  # then what was asked ahead is for nothing
    asked = None if taken_up or late else claim_next(context, job_id)
    if asked is not None:
        return asked  # what follows from the last result is done while this one trains
    new_id = advance(context, job_id, take=not taken_up)
    if new_id is None:
        return None
    new = claim_lot(context, new_id) or claim_next(context, job_id)
    if new is None:  # other workers were faster
        advance(context, job_id)
    return new


def _report_stray(context: Context, lot_id: str) -> None:
    """A lot that waits while its job has ended was not told so: the job's own handler cancels it."""
    with context.reading() as session:
        lot = session.get(LotRow, lot_id)
        job = session.get(JobRow, lot.job_id) if lot is not None and lot.state == LotState.WAITING else None
    if job is not None and job.state not in (JobState.RUNNING, JobState.PAUSED):
        advance(context, job.id)


def _train(context: Context, claimed: Claimed, lease: Lease, scratch: Path) -> None:
    try:
        order = lot_order(context, claimed, scratch)
        progress = begin(claimed)
        with context.crew.order(RunLot(order=order, resume_every_s=RESUME_EVERY_S), timeout_s=0.2) as news:
            for message in news:
                if progress.closed:
                    continue
                lease.check()
                _take(context, claimed, lease, progress, message)
                if time.monotonic() - progress.looked_at >= LOOK_EVERY_S:
                    _write_reports(context, claimed, progress)
                    _look(context, claimed, progress)
        if not progress.closed:
            lease.insist(partial(_hand_back, context, claimed))
    except LeaseLost:
        raise
    except ChildDied as died:
        lease.insist(partial(_give_back, context, claimed, died.code, died.reason))
    except Unavailable as error:
        _give_back(context, claimed, error.code, error.detail)
    except GraftError as error:
        lease.insist(partial(_fail, context, claimed, error.code, error.detail))
    except Exception as error:  # a full disk, a fault of ours: it may go better once more, and the row says what it was
        log.exception("%s broke", claimed.lot_id)
        _give_back(context, claimed, "internal_error", f"{type(error).__name__}: {error}")


def _take(context: Context, claimed: Claimed, lease: Lease, progress: Progress, message: FromChild | None) -> None:
    if isinstance(message, Reported):
        progress.reports.append(message.report)
        if message.report.value is not None:
            curve = progress.curves.setdefault(message.report.trial_id, [])
            curve.append((message.report.share, message.report.value))
    elif isinstance(message, FirstStep):
        _note_first_step(context, claimed, message)
    elif isinstance(message, Resumable):
        _write_reports(context, claimed, progress)
        lease.insist(partial(_keep_resume_point, context, claimed, message))
    elif isinstance(message, Ended):
        lease.insist(partial(_end_trial, context, claimed, progress, message.outcome))
    elif isinstance(message, Refused):
        raise GraftError(message.code, message.detail)


def _note_first_step(context: Context, claimed: Claimed, message: FirstStep) -> None:
    """Nothing else is to do here while the trial process trains: what follows from the trial before is done now."""
    try:
        with context.transaction() as session:
            hold(session, LotRow, claimed.lot_id, claimed.fence)
            trial = session.get_one(TrialRow, message.trial_id)
            set_trial_facts(session, trial, attrs={**trial.attrs, "first_step_at": message.at})
        advance(context, claimed.job_id)
        read_ahead(context, claimed)
    except LeaseLost:
        raise
    except Exception:  # neither is this trial's fault, and the sweep advances the job again
        log.exception("%s could not be advanced", claimed.job_id)


def _write_reports(context: Context, claimed: Claimed, progress: Progress) -> None:
    if not progress.reports:
        return
    try:
        with context.transaction() as session:
            record_reports(session, claimed.lot_id, claimed.fence, progress.reports)
    except Unavailable as error:
        log.warning("reports of %s wait: %s", claimed.lot_id, error)  # training goes on until the lease is lost
        return
    progress.reports.clear()


def _look(context: Context, claimed: Claimed, progress: Progress) -> None:
    """Look at the job and the curves, and tell the trial process what is wanted now."""
    progress.looked_at = time.monotonic()
    try:
        with context.reading() as session:
            wish, why = _job_wish(context, session, claimed)
        for trial in claimed.trials:
            told, _ = progress.wishes.get(trial.id, ("go", ""))
            wanted = wish, why
            # A mean over seeds needs every seed to the end; so does a comparison of cheap trials.
            if wish == "go" and trial.anchor is None and trial.attrs.get("origin") not in (REPEATED, CHEAP):
                wanted = _pruner_wish(context, claimed, progress, trial)
            if wanted[0] != "go" and (told == "go" or (told == "pause" and wanted[0] == "cancel")):
                progress.wishes[trial.id] = wanted
                context.crew.wish(trial.id, wanted[0])
    except Unavailable as error:
        log.warning("%s goes on unwatched: %s", claimed.lot_id, error)


def _job_wish(context: Context, session: Session, claimed: Claimed) -> tuple[Wish, str]:
    job = session.get_one(JobRow, claimed.job_id)
    if job.state == JobState.PAUSED:
        return "pause", "job paused"
    if job.state != JobState.RUNNING:
        return "cancel", "job cancelled"
    if context.stopping.is_set():
        return "pause", "worker stopping"
    spec = JobSpec.model_validate(job.spec)  # of the row: a budget may have been extended
    over = why_stop(session, job, spec)
    if over is not None:
        return "cancel", f"budget: {over}"
    return "go", ""


def _pruner_wish(context: Context, claimed: Claimed, progress: Progress, trial: TrialRow) -> tuple[Wish, str]:
    curve = progress.curves.get(trial.id)
    if not curve:
        return "go", ""
    with SEARCHES.of(claimed.job_id, claimed.spec) as search:
        with context.reading() as session:
            history = read_history(session, claimed.job_id, search)
        search.learn(history)
        asked = progress.asked.get(trial.id, 0.0)
        if not search.should_prune(trial.number, curve, asked=asked):
            progress.asked[trial.id] = curve[-1][0]
            return "go", ""
        rung = search.rests_at(trial.number, curve, asked=asked)
    if rung is None:
        return "stop", "pruned"
    progress.rungs[trial.id] = rung
    return "pause", "rung"


def _keep_resume_point(context: Context, claimed: Claimed, message: Resumable) -> None:
    """Valid only once the fenced row commits; the one before goes with it. May be done again from the start."""
    folder = Path(message.folder)
    key = f"{claimed.workspace_id}/trials/{message.trial_id}/{claimed.fence}/{folder.name}.zip"
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as bundle:  # stored: weights do not compress
        for file in sorted(folder.iterdir()):
            bundle.write(file, file.name)
    info = context.blobs.put(key, archive)
    with context.transaction() as session:
        hold(session, LotRow, claimed.lot_id, claimed.fence)
        trial = session.get_one(TrialRow, message.trial_id)
        before = trial.resume_blob
        add_blob(session, claimed.workspace_id, key, info, trial.id)
        set_trial_facts(session, trial, resume_blob=key)
        if before is not None and before != key:
            for dead in drop_ref(session, before, trial.id):
                after_commit(session, partial(context.blobs.delete, dead))
    archive.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _end_trial(context: Context, claimed: Claimed, progress: Progress, outcome: TrialOutcome) -> None:
    _, why = progress.wishes.get(outcome.trial_id, ("go", ""))
    state = TrialState(outcome.state)
    cheap = {trial.id for trial in claimed.trials if trial.attrs.get("origin") == CHEAP}
    if outcome.trial_id in cheap and state == TrialState.COMPLETE:  # it has a value to be promoted for, and no weights
        state, why = TrialState.PRUNED, "pruned"
    blobs: dict[str, str] = {}
    stored: list[tuple[str, BlobInfo]] = []
    if state == TrialState.COMPLETE:
        files = {"checkpoint_blob": "weights", "predictions_blob": "predictions"}
        paths = {column: Path(outcome.files[name]) for column, name in files.items() if name in outcome.files}
        folder = f"{claimed.workspace_id}/trials/{outcome.trial_id}/{claimed.fence}"
        blobs = {column: f"{folder}/{path.name}" for column, path in paths.items()}
        with ThreadPoolExecutor() as pool:  # each put waits for a disk or a network
            stored = list(zip(blobs.values(), pool.map(context.blobs.put, blobs.values(), paths.values()), strict=True))
    elif state == TrialState.PRUNED and (why != "pruned" or outcome.value is None):
        state = TrialState.CANCELLED  # stopped by the budget, the user or a failing lease, not for what it showed
    with context.transaction() as session:
        lot = hold(session, LotRow, claimed.lot_id, claimed.fence)
        if progress.reports:
            record_reports(session, claimed.lot_id, claimed.fence, progress.reports)
        trial = session.get_one(TrialRow, outcome.trial_id)
        for key, info in stored:
            add_blob(session, claimed.workspace_id, key, info, trial.id)
        said = {name: outcome.facts[name] for name in ("remarks", "precision", "stages") if outcome.facts.get(name)}
        attrs = {**trial.attrs, **said}
        cost_s = max(trial.cost_s, outcome.cost_s)
        set_trial_facts(session, trial, cost_s=cost_s, peak_bytes=outcome.peak_bytes, attrs=attrs)
        if state == TrialState.PAUSED:
            if why == "rung":
                rung = {"rung": progress.rungs[trial.id], "rested_at": float(session.scalar(select(now())) or 0.0)}
                become(session, trial, TrialState.PAUSED, value=outcome.value, attrs=trial.attrs | rung)
            else:
                become(session, trial, TrialState.PAUSED if why == "job paused" else TrialState.WAITING)
            after_commit(session, progress.reports.clear)
            _close(session, lot, progress)
            return
        error = {"code": outcome.error_code, "detail": outcome.error} if outcome.error_code else None
        become(session, trial, state, value=outcome.value, metrics=outcome.metrics or None, error=error, **blobs)
        if state == TrialState.COMPLETE:
            _note_if_best(session, claimed, trial)
        after_commit(session, progress.reports.clear)
        _close(session, lot, progress)


def _note_if_best(session: Session, claimed: Claimed, trial: TrialRow) -> None:
    """Of two that end at once both may lead in their own eyes: who leads is seen under the job's lock."""
    if leader(session, claimed.job_id, claimed.spec) == trial.id:
        job = session.get_one(JobRow, claimed.job_id, with_for_update={"key_share": True}, populate_existing=True)
        if leader(session, job.id, claimed.spec) == trial.id:
            note_best(session, job, trial)


def _close(session: Session, lot: LotRow, progress: Progress) -> None:
    """The lot is over once all its trials are; it is PAUSED once those that are not rest at a rung."""
    left = [trial for trial in trials_of_lot(session, lot.id) if not TrialState(trial.state).finished]
    if all(rests(trial) for trial in left):
        become(session, lot, LotState.PAUSED if left else LotState.DONE)
        after_commit(session, progress.close)


def _hand_back(context: Context, claimed: Claimed) -> None:
    """Trials of this lot were told to pause: it waits to be resumed, and nobody is at fault."""
    with context.transaction() as session:
        lot = hold(session, LotRow, claimed.lot_id, claimed.fence)
        return_lot(session, lot, attempt=lot.attempt - 1)
        after_commit(session, partial(context.doorbell.wake, "run_lot", lot.id))


def _give_back(context: Context, claimed: Claimed, code: str, detail: str) -> None:
    """The work was cut off by something that may not happen again: try again later, from the last resume point."""
    if claimed.attempt >= context.settings.max_attempts:
        _fail(context, claimed, code, f"{detail}; tried {claimed.attempt} times")
        return
    with context.transaction() as session:
        lot = hold(session, LotRow, claimed.lot_id, claimed.fence)
        return_lot(session, lot, not_before=now() + claimed.attempt * BACK_OFF_S)


def _fail(context: Context, claimed: Claimed, code: str, detail: str) -> None:
    with context.transaction() as session:
        lot = hold(session, LotRow, claimed.lot_id, claimed.fence)
        fail_lot(session, lot, code, detail)


def return_lot(session: Session, lot: LotRow, **changes: Any) -> None:
    """A RUNNING lot waits for another worker, or for the same one."""
    for trial in trials_of_lot(session, lot.id):
        if trial.state == TrialState.RUNNING:
            become(session, trial, TrialState.WAITING)
    become(session, lot, LotState.WAITING, woken_at=0.0, **changes)


def fail_lot(session: Session, lot: LotRow, code: str, detail: str) -> None:
    """Nothing more comes of what was trained: it has failed. What rests at a rung keeps what it has shown."""
    trials = trials_of_lot(session, lot.id)
    resting = [trial for trial in trials if rests(trial) and lot.state == LotState.RUNNING]
    for trial in (trial for trial in trials if trial not in resting):
        if trial.state == TrialState.PAUSED:
            become(session, trial, TrialState.WAITING)
        if not TrialState(trial.state).finished:
            become(session, trial, TrialState.FAILED, error={"code": code, "detail": detail})
    become(session, lot, LotState.PAUSED if resting else LotState.DONE)
