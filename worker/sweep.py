"""The sweep: gives back what a lost worker held, rings again for what was not heard, frees what nobody needs.

It runs in every worker; a leased turn lets one of them act at a time. Each step is idempotent and a transaction of its
own, so that a sweep killed in the middle leaves nothing half done.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from domain.errors import Conflict, NotFound
from domain.states import DatasetState, JobState, LotState
from store.blob_rows import unreferenced
from store.datasets import delete_dataset
from store.leases import due, expired, take_back, take_turn
from store.moves import become
from store.tables import DatasetRow, JobRow, LotRow
from store.uploads import delete_upload, stale_uploads
from store.workers import forget_silent
from worker.context import Context
from worker.lots import fail_lot, return_lot

log = logging.getLogger(__name__)

RING_AGAIN_S = 30.0
TIDY_EVERY_S = 600.0  # unreferenced blobs and old scratch folders


def sweep(context: Context) -> bool:
    """One round; False if another worker has the turn."""
    settings = context.settings
    with context.transaction() as session:
        if not take_turn(session, "sweep", context.worker_id, for_s=2 * settings.sweep_s):
            return False
    _take_back_lots(context)
    _take_back_rows(context, DatasetRow)
    _take_back_rows(context, JobRow)
    _ring_again(context)
    _expire_uploads(context)
    with context.transaction() as session:
        forget_silent(session, after_s=20 * settings.lease_s)
    with context.transaction() as session:
        tidy = take_turn(session, "tidy", f"{context.worker_id}-{time.time()}", for_s=TIDY_EVERY_S)
    if tidy:
        _free_unreferenced(context)
    return True


def _take_back_lots(context: Context) -> None:
    with context.reading() as session:
        lost = expired(session, LotRow)
    for lot_id in lost:
        with context.transaction() as session:
            lot = take_back(session, LotRow, lot_id)
            if lot is None:
                continue
            log.warning("lot %s: its worker went silent (attempt %d)", lot_id, lot.attempt)
            if lot.attempt >= context.settings.max_attempts:
                fail_lot(session, lot, "lost_worker", f"{lot.attempt} workers were lost with this trial")
            else:
                return_lot(session, lot)
            job_id = lot.job_id
        context.doorbell.wake("advance", job_id)


def _take_back_rows(context: Context, row: type[Any]) -> None:
    """Datasets being checked and jobs being probed or finished: free for the next worker, or given up."""
    with context.reading() as session:
        lost = expired(session, row)
    for row_id in lost:
        with context.transaction() as session:
            held = take_back(session, row, row_id)
            if held is None or held.attempt < context.settings.max_attempts:
                continue
            detail = f"{held.attempt} workers were lost with this {row.__tablename__.removesuffix('s')}"
            error = {"code": "lost_worker", "detail": detail}
            final = DatasetState.REJECTED if isinstance(held, DatasetRow) else JobState.FAILED
            with contextlib.suppress(Conflict):
                become(session, held, final, error=error)


def _ring_again(context: Context) -> None:
    """The rows are the outbox: whatever waits for a handler and was not rung for lately is rung for again."""
    going = (JobState.WAITING, JobState.PROBING, JobState.RUNNING, JobState.FINISHING)
    calls: list[tuple[str, type[Any], Collection[str], float]] = [
        ("prepare_dataset", DatasetRow, [DatasetState.CHECKING], RING_AGAIN_S),
        ("advance", JobRow, going, context.settings.sweep_s),  # also how a budget of time ends between two trials
        ("run_lot", LotRow, [LotState.WAITING], RING_AGAIN_S),
    ]
    for handler, row, states, quiet_s in calls:
        with context.transaction() as session:
            waiting = due(session, row, states, quiet_s=quiet_s)
        for row_id in waiting:
            context.doorbell.wake(handler, row_id)


def _expire_uploads(context: Context) -> None:
    """Half uploads past their time go with their bytes and their dataset."""
    with context.reading() as session:
        stale = stale_uploads(session)
    for upload in stale:
        with context.transaction() as session:
            delete_upload(session, upload.id)
            if not upload.finished:
                with contextlib.suppress(NotFound, Conflict):
                    delete_dataset(session, upload.workspace_id, upload.dataset_id)
        (context.settings.home / "uploads" / upload.id).unlink(missing_ok=True)


def _free_unreferenced(context: Context) -> None:
    """Delete bytes that no row knows, once they are older than a lease: younger ones may be about to get their row."""
    with context.reading() as session:
        dead = unreferenced(session, context.blobs.keys())
    for key in dead:
        if context.blobs.age_s(key) > context.settings.lease_s:
            log.info("freeing %s, which nobody needs", key)
            context.blobs.delete(key)
    context.blobs.tidy(24 * 3600)
    _tidy_scratch(context.cache / "scratch", context.settings.lease_s)


def _tidy_scratch(folder: Path, older_than_s: float) -> None:
    """Scratch folders of workers that were killed."""
    for left in folder.glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > max(older_than_s, 24 * 3600):
                shutil.rmtree(left, ignore_errors=True)
