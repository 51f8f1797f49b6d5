"""The sweep: gives back what a lost worker held, rings again for what was not heard, frees what nobody needs.

It runs in every worker; a leased turn lets one of them act at a time. Each step is idempotent and a transaction of its
own, so that a sweep killed in the middle leaves nothing half done.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import select

from domain.errors import Conflict, NotFound, Unavailable
from domain.ports import BlobStore
from domain.states import DatasetState, JobState, LotState
from store.blob_rows import unreferenced
from store.cache import evict
from store.datasets import delete_dataset
from store.leases import due, exhausted, expired, take_back, take_turn
from store.moves import become
from store.session import after_commit
from store.settings import Settings
from store.tables import DatasetRow, JobRow, LotRow, TrialRow
from store.uploads import delete_upload, stale_uploads
from store.workers import forget_silent
from worker.advance import RING_AGAIN_S
from worker.context import Context
from worker.lots import fail_lot, return_lot
from worker.prepare import drop_upload

log = logging.getLogger(__name__)

TIDY_EVERY_S = 600.0  # unreferenced blobs, caches, old scratch folders
CACHED_FOR_S = 6 * 3600.0  # a trial may come back to its files for as long
# Kinds of cached files, each evicted on its own, and for how long one stays after its last use whatever it weighs.
# Activations that are gone are worked out again.
KINDS = dict.fromkeys(("packs", "items", "weights", "resume"), CACHED_FOR_S) | {"activations": TIDY_EVERY_S}
BATCH = 500
# States in which a row waits for a claim.
WORK: dict[type[Any], Collection[str]] = {
    LotRow: (LotState.WAITING,),
    DatasetRow: (DatasetState.CHECKING,),
    JobRow: (JobState.WAITING, JobState.PROBING, JobState.FINISHING),
}


def sweep(context: Context) -> bool:
    """One round; False if another worker has the turn."""
    settings = context.settings
    with context.transaction() as session:
        if not take_turn(session, "sweep", context.worker_id, for_s=2 * settings.sweep_s):
            return False
    for row, states in WORK.items():
        _take_back(context, row)
        _give_up(context, row, states)
    ring_again(context)
    _expire_uploads(context)
    with context.transaction() as session:
        forget_silent(session, after_s=20 * settings.lease_s)
    with context.transaction() as session:
        tidy = take_turn(session, "tidy", f"{context.worker_id}-{time.time()}", for_s=TIDY_EVERY_S)
    if tidy:
        _free_ended(context)
        _free_unreferenced(context)
        context.blobs.tidy(24 * 3600)
    return True


def tidy_machine(settings: Settings) -> None:
    """What lies on this machine alone: scratch folders of workers that were killed, and caches over their limit."""
    _tidy_scratch(settings.cache / "scratch", settings.lease_s)
    caches = [(folder, idle_s) for kind, idle_s in KINDS.items() for folder in settings.cache.glob(f"*/{kind}")]
    for folder, idle_s in caches:
        evict(folder, settings.max_cache_bytes // len(caches), min_idle_s=idle_s)


@contextlib.contextmanager
def _alone(row_id: str) -> Iterator[None]:
    """One row that cannot be moved does not keep the others from it."""
    try:
        yield
    except Unavailable:
        raise
    except Exception:
        log.exception("the sweep could not move %s", row_id)


def _take_back(context: Context, row: type[Any]) -> None:
    """What lost workers held is free for the next one."""
    with context.reading() as session:
        lost = expired(session, row)
    for row_id in lost:
        with _alone(row_id), context.transaction() as session:
            held = take_back(session, row, row_id)
            if held is None:
                continue
            log.warning("%s: its worker went silent (attempt %d)", row_id, held.attempt)
            if isinstance(held, LotRow):
                return_lot(session, held)


def _give_up(context: Context, row: type[Any], states: Collection[str]) -> None:
    """What has cost too many workers is claimed no more: it has failed."""
    with context.reading() as session:
        hopeless = exhausted(session, row, states, max_attempts=context.settings.max_attempts)
    for row_id in hopeless:
        with _alone(row_id), context.transaction() as session:
            held = session.get(row, row_id, with_for_update=True, populate_existing=True)
            if held is None or held.state not in states or held.attempt < context.settings.max_attempts:
                continue
            error = {
                "code": "lost_worker",
                "detail": f"it was tried {held.attempt} times, and no worker brought it to an end",
            }
            if isinstance(held, LotRow):
                fail_lot(session, held, **error)
                after_commit(session, partial(context.doorbell.wake, "advance", held.job_id))
            elif isinstance(held, DatasetRow):
                drop_upload(context, session, held)
                become(session, held, DatasetState.REJECTED, error=error, upload_blob=None)
            else:
                become(session, held, JobState.FAILED, error=error)
                after_commit(session, partial(context.doorbell.wake, "advance", held.id))


def ring_again(context: Context, *, whatever: bool = False) -> None:
    """The rows are the outbox: what waits for a handler and was not rung for lately is rung for again; or `whatever`
    waits, by one who has just begun to listen."""
    going = (*WORK[JobRow], JobState.RUNNING)
    calls: list[tuple[str, type[Any], Collection[str], float]] = [
        ("prepare_dataset", DatasetRow, WORK[DatasetRow], RING_AGAIN_S),
        ("advance", JobRow, going, context.settings.sweep_s),  # also how a budget of time ends between two trials
        ("run_lot", LotRow, WORK[LotRow], RING_AGAIN_S),
    ]
    for handler, row, states, quiet_s in calls:
        with context.transaction() as session:
            waiting = due(session, row, states, quiet_s=0.0 if whatever else quiet_s)
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


def _free_ended(context: Context) -> None:
    """A job that has ended is advanced once more if it still holds what goes with its end: that message was lost."""
    left = TrialRow.resume_blob.is_not(None) | ((JobRow.state == "CANCELLED") & TrialRow.checkpoint_blob.is_not(None))
    ended = JobRow.state.in_([str(s) for s in JobState if s.finished])
    with context.reading() as session:
        query = select(JobRow.id).join(TrialRow, TrialRow.job_id == JobRow.id).where(ended, left).distinct()
        jobs = list(session.scalars(query))
    for job_id in jobs:
        context.doorbell.wake("advance", job_id)


def _free_unreferenced(context: Context) -> None:
    """Delete bytes that no row knows, once they are older than a lease: younger ones may be about to get their row.

    Age is looked at before the rows are read for the last time: what is old then will get no row any more.
    """
    keys = iter(context.blobs.keys())
    while batch := list(islice(keys, BATCH)):
        with context.reading() as session:
            suspects = unreferenced(session, batch)
        old = [key for key in suspects if _age_s(context.blobs, key) > context.settings.lease_s]
        with context.reading() as session:
            dead = unreferenced(session, old)
        for key in dead:
            log.info("freeing %s, which nobody needs", key)
            context.blobs.delete(key)


def _age_s(blobs: BlobStore, key: str) -> float:
    try:
        return blobs.age_s(key)
    except NotFound:  # gone meanwhile
        return 0.0


def _tidy_scratch(folder: Path, older_than_s: float) -> None:
    """Scratch folders of workers that were killed."""
    for left in folder.glob("*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > max(older_than_s, 24 * 3600):
                shutil.rmtree(left, ignore_errors=True)
