"""Queries and moves of datasets and of the sources that users register."""

from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from domain.errors import NotFound
from domain.ids import new_id
from domain.ports import BlobInfo
from domain.states import DatasetState
from store.blob_rows import add_blob, drop_refs
from store.clock import now
from store.jobs import check_unneeded
from store.moves import become as become
from store.pages import Page, page
from store.tables import DatasetRow, SourceRow


def insert_dataset(
    session: Session, workspace_id: str, *, name: str, task: str, options: dict[str, Any],
    dataset_id: str | None = None,
) -> DatasetRow:  # fmt: skip
    """A dataset whose bytes are on their way: UPLOADING."""
    row = DatasetRow(
        id=dataset_id or new_id("dataset"), workspace_id=workspace_id, name=name, task=task,
        state=str(DatasetState.UPLOADING), options=options,
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get_dataset(
    session: Session, workspace_id: str, dataset_id: str, *, lock: bool = False, share: bool = False
) -> DatasetRow:
    """The dataset of this workspace; a deleted one is as good as missing.

    `share` keeps it from being deleted until the end of the transaction: take it before a job is created on it.
    """
    query = select(DatasetRow).where(
        DatasetRow.id == dataset_id, DatasetRow.workspace_id == workspace_id, DatasetRow.state != DatasetState.DELETED
    )
    if lock or share:
        query = query.with_for_update(read=share, key_share=share).execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise NotFound("dataset_not_found", "there is no such dataset in this workspace")
    return row


def list_datasets(
    session: Session, workspace_id: str, *, state: str | None = None, limit: int = 50, cursor: str | None = None
) -> Page[DatasetRow]:
    query = select(DatasetRow).where(DatasetRow.workspace_id == workspace_id, DatasetRow.state != DatasetState.DELETED)
    if state is not None:
        query = query.where(DatasetRow.state == state)
    return page(session, query, DatasetRow, limit=limit, cursor=cursor)


def finish_upload(session: Session, row: DatasetRow, key: str, info: BlobInfo) -> None:
    """The bytes are stored under `key`: UPLOADING -> CHECKING. Wake `prepare_dataset` after the commit."""
    add_blob(session, row.workspace_id, key, info, row.id)
    become(session, row, DatasetState.CHECKING, upload_blob=key, size_bytes=info.size_bytes, sha256=info.sha256)


def count_test_look(session: Session, dataset_id: str) -> int:
    """One more job has looked at the test split; returns how many have, this one included."""
    looked = update(DatasetRow).where(DatasetRow.id == dataset_id).values(n_test_looks=DatasetRow.n_test_looks + 1)
    if session.scalar(looked.returning(DatasetRow.id)) is None:
        raise NotFound("dataset_not_found", f"there is no dataset {dataset_id}")
    return test_looks(session, dataset_id)


def test_looks(session: Session, dataset_id: str) -> int:
    """How many jobs of the workspace have looked at this test split, in this upload or another of the same content."""
    row = session.get_one(DatasetRow, dataset_id)
    same = DatasetRow.id == dataset_id if row.content_hash is None else DatasetRow.content_hash == row.content_hash
    query = select(func.sum(DatasetRow.n_test_looks)).where(DatasetRow.workspace_id == row.workspace_id, same)
    return int(session.scalar(query) or 0)


def delete_dataset(session: Session, workspace_id: str, dataset_id: str) -> list[str]:
    """Delete a dataset that no unfinished job needs; returns blob keys to delete after the commit."""
    row = get_dataset(session, workspace_id, dataset_id, lock=True)
    check_unneeded(session, workspace_id, dataset_id)
    keys = drop_refs(session, dataset_id)
    become(session, row, DatasetState.DELETED, upload_blob=None, items_blob=None, findings=None)
    return keys


def insert_source(
    session: Session, workspace_id: str, *, source_id: str, name: str, backbone: str, blob: str, info: BlobInfo,
    n_classes: int = 0, classes: tuple[str, ...] = (), licence: str = "unknown",
) -> SourceRow:  # fmt: skip
    """Weights that were checked and stored under `blob`."""
    add_blob(session, workspace_id, blob, info, source_id)
    row = SourceRow(
        id=source_id, workspace_id=workspace_id, name=name, backbone=backbone, blob=blob, size_bytes=info.size_bytes,
        sha256=info.sha256, n_classes=n_classes, classes=list(classes), licence=licence,
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get_source(
    session: Session, workspace_id: str, source_id: str, *, lock: bool = False, share: bool = False
) -> SourceRow:
    query = select(SourceRow).where(
        SourceRow.id == source_id, SourceRow.workspace_id == workspace_id, SourceRow.deleted_at.is_(None)
    )
    if lock or share:
        query = query.with_for_update(read=share, key_share=share).execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise NotFound("source_not_found", "there is no such source in this workspace")
    return row


def list_sources(session: Session, workspace_id: str, *, limit: int = 50, cursor: str | None = None) -> Page[SourceRow]:
    query = select(SourceRow).where(SourceRow.workspace_id == workspace_id, SourceRow.deleted_at.is_(None))
    return page(session, query, SourceRow, limit=limit, cursor=cursor)


def delete_source(session: Session, workspace_id: str, source_id: str) -> list[str]:
    """Delete a source that no unfinished job starts from; returns blob keys to delete after the commit."""
    row = get_source(session, workspace_id, source_id, lock=True)
    check_unneeded(session, workspace_id, source_id)
    keys = drop_refs(session, source_id)
    session.execute(update(SourceRow).where(SourceRow.id == row.id).values(deleted_at=now()))
    return keys
