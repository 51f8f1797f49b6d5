"""`finish_job`: the best trial and the anchors meet the test split once; the winner becomes a bundle."""

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from domain.errors import GraftError, LeaseLost, Unavailable
from domain.lot import FinishOrder, FinishOutcome
from domain.states import JobState, LotState
from store.blob_rows import add_blob
from store.datasets import count_test_look
from store.events import tell
from store.leases import claim, hold, release
from store.moves import become
from store.session import after_commit
from store.tables import JobRow
from store.trials import lots_of, set_trial_facts, trials_by_id
from worker.context import Context
from worker.crew import ChildDied
from worker.finish_order import finish_order
from worker.lease import Lease
from worker.wire import Done, Finish, Refused

log = logging.getLogger(__name__)

BACK_OFF_S = 2.0


def finish_job(context: Context, job_id: str) -> None:
    settings = context.settings
    with context.transaction() as session:
        if lots_of(session, job_id, [LotState.RUNNING]):
            return  # the end of that lot wakes us again
        fence = claim(
            session, JobRow, job_id, state_from=JobState.FINISHING, state_to=None,
            owner=context.worker_id, lease_s=settings.lease_s, max_attempts=settings.max_attempts,
        )  # fmt: skip
    if fence is None:
        return
    scratch = context.cache / "scratch" / f"{job_id}-{fence}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with Lease(context, JobRow, job_id, fence) as lease:
            _finish(context, job_id, fence, lease, scratch)
    except LeaseLost as lost:  # cancelled, or in other hands
        log.info("%s", lost.detail)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _finish(context: Context, job_id: str, fence: int, lease: Lease, scratch: Path) -> None:
    with context.reading() as session:
        attempt = session.get_one(JobRow, job_id).attempt
    try:
        order = finish_order(context, job_id, scratch)
        outcome = _ask(context, order, lease)
        lease.insist(partial(_store, context, job_id, fence, outcome))
    except LeaseLost:
        raise
    except (ChildDied, Unavailable, OSError) as error:
        reason = error.reason if isinstance(error, ChildDied) else str(error)
        if attempt >= context.settings.max_attempts:
            _fail(context, job_id, fence, "finish_failed", f"{reason}; tried {attempt} times")
            return
        with context.transaction() as session:
            release(session, JobRow, job_id, fence, not_before_s=BACK_OFF_S * attempt)
    except GraftError as error:
        _fail(context, job_id, fence, error.code, error.detail)


def _ask(context: Context, order: FinishOrder, lease: Lease) -> FinishOutcome:
    found: dict[str, Any] = {}
    with context.crew.order(Finish(order=order), timeout_s=0.5) as news:
        for message in news:
            lease.check()
            if isinstance(message, Refused):
                raise GraftError(message.code, message.detail)
            if isinstance(message, Done):
                found = dict(message.body)
    return FinishOutcome.model_validate(found)


def _store(context: Context, job_id: str, fence: int, outcome: FinishOutcome) -> None:
    with context.reading() as session:
        workspace_id = session.get_one(JobRow, job_id).workspace_id
    key = f"{workspace_id}/jobs/{job_id}/{fence}/bundle.zip"
    info = context.blobs.put(key, Path(outcome.bundle))
    best_id, result = outcome.result.best_trial_id, outcome.result.model_dump(mode="json")
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        add_blob(session, workspace_id, key, info, job_id)
        count_test_look(session, job.dataset_id)
        for trial in trials_by_id(session, outcome.tests):
            set_trial_facts(session, trial, test=outcome.tests[trial.id])
        tell(session, job_id, "job.result", result)
        become(session, job, JobState.COMPLETE, result=result, bundle_blob=key, best_trial_id=best_id)
        after_commit(session, partial(context.doorbell.wake, "advance", job_id))


def _fail(context: Context, job_id: str, fence: int, code: str, detail: str) -> None:
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        become(session, job, JobState.FAILED, error={"code": code, "detail": detail})
        after_commit(session, partial(context.doorbell.wake, "advance", job_id))
