"""`prepare_dataset`: an upload becomes a checked, split dataset, read in a sandboxed child."""

import json
import logging
import shutil
from functools import partial
from pathlib import Path

from sqlalchemy.orm import Session

from domain.errors import Invalid, Unavailable
from domain.states import DatasetState
from intake.prepared import open_prepared
from store.blob_rows import add_blob, drop_ref
from store.cache import fetch_blob
from store.leases import claim, hold, release
from store.moves import become
from store.session import after_commit
from store.tables import DatasetRow
from worker.context import Context
from worker.files import sandboxed
from worker.lease import Lease

log = logging.getLogger(__name__)

BACK_OFF_S = 2.0
MAX_FINDINGS_IN_ROW = 10_000


def prepare_dataset(context: Context, dataset_id: str) -> None:
    settings = context.settings
    with context.transaction() as session:
        fence = claim(
            session, DatasetRow, dataset_id, state_from=DatasetState.CHECKING, state_to=None,
            owner=context.worker_id, lease_s=settings.lease_s, max_attempts=settings.max_attempts,
        )  # fmt: skip
        row = session.get(DatasetRow, dataset_id) if fence is not None else None
    if fence is None or row is None or row.upload_blob is None:
        return
    scratch = context.cache / "scratch" / f"{dataset_id}-{fence}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with Lease(context, DatasetRow, dataset_id, fence) as lease:
            archive = fetch_blob(context.blobs, row.upload_blob, scratch)
            items = scratch / "items.zip"
            try:
                limits = json.dumps({"max_files": settings.max_files})
                options = ["--task", row.task, "--options", json.dumps(row.options), "--limits", limits]
                sandboxed(["prepare", str(archive), str(items), *options])
            except Invalid as error:
                lease.insist(partial(_reject, context, dataset_id, fence, error))
                return
            lease.check()
            lease.insist(partial(_store, context, row, fence, items))
    except Unavailable as error:
        log.warning("%s is tried again: %s", dataset_id, error)
        with context.transaction() as session:
            release(session, DatasetRow, dataset_id, fence, not_before_s=BACK_OFF_S * row.attempt)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _store(context: Context, row: DatasetRow, fence: int, items: Path) -> None:
    with open_prepared(items) as prepared:
        manifest = prepared.manifest
    key = f"{row.workspace_id}/datasets/{row.id}/{fence}/items.zip"
    info = context.blobs.put(key, items)
    summary = manifest.model_dump(mode="json", exclude={"items", "findings"})
    findings = [f.model_dump(mode="json") for f in manifest.findings[:MAX_FINDINGS_IN_ROW]]
    with context.transaction() as session:
        held = hold(session, DatasetRow, row.id, fence)
        add_blob(session, row.workspace_id, key, info, row.id)
        drop_upload(context, session, held)
        become(
            session, held, DatasetState.READY, items_blob=key, upload_blob=None, summary=summary, findings=findings,
            content_hash=manifest.content_hash,
        )  # fmt: skip


def _reject(context: Context, dataset_id: str, fence: int, error: Invalid) -> None:
    body = {"code": error.code, "detail": error.detail} | error.facts
    with context.transaction() as session:
        held = hold(session, DatasetRow, dataset_id, fence)
        drop_upload(context, session, held)
        become(session, held, DatasetState.REJECTED, error=body, upload_blob=None)


def drop_upload(context: Context, session: Session, held: DatasetRow) -> None:
    """The upload has served: free its bytes with the commit."""
    if held.upload_blob is not None:
        for key in drop_ref(session, held.upload_blob, held.id):
            after_commit(session, partial(context.blobs.delete, key))
