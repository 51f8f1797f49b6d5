"""Resumable uploads. `offset` is committed after the bytes are flushed, so it never promises what is not on disk."""

from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from domain.errors import NotFound
from domain.ids import new_id
from store.clock import now
from store.tables import UploadRow


def insert_upload(
    session: Session, workspace_id: str, dataset_id: str, *, length: int, metadata: dict[str, str],
    sha256: str | None, ttl_s: float,
) -> UploadRow:  # fmt: skip
    row = UploadRow(
        id=new_id("upload"), workspace_id=workspace_id, dataset_id=dataset_id, length=length, offset=0,
        upload_metadata=metadata, sha256=sha256, expires_at=now() + ttl_s,
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def get_upload(session: Session, workspace_id: str, upload_id: str) -> UploadRow:
    """An upload that has neither expired nor ended by its termination."""
    query = select(UploadRow).where(
        UploadRow.id == upload_id, UploadRow.workspace_id == workspace_id, UploadRow.expires_at > now()
    )
    row = session.scalar(query)
    if row is None:
        raise NotFound("upload_not_found", "there is no such upload in this workspace, or it has expired")
    return row


def lock_upload(session: Session, upload_id: str, for_s: float) -> bool:
    """One writer at a time; False: another request is writing. The lock ends by itself if its holder dies."""
    taken = update(UploadRow).where(UploadRow.id == upload_id, UploadRow.locked_until <= now())
    return session.scalar(taken.values(locked_until=now() + for_s).returning(UploadRow.id)) is not None


def keep_lock(session: Session, upload_id: str, for_s: float) -> None:
    session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(locked_until=now() + for_s))


def unlock_upload(session: Session, upload_id: str) -> None:
    session.execute(update(UploadRow).where(UploadRow.id == upload_id).values(locked_until=0.0))


def unlock_all(session: Session) -> None:
    """At the start of the only server of an installation: whoever held a lock is gone."""
    session.execute(update(UploadRow).where(UploadRow.locked_until > 0.0).values(locked_until=0.0))


def move_offset(
    session: Session, upload_id: str, *, offset_from: int, offset_to: int, ttl_s: float | None = None
) -> bool:
    """Compare-and-set of the offset; False if somebody else has moved it. With `ttl_s` its time starts anew."""
    changes: dict[str, Any] = {"offset": offset_to}
    if ttl_s is not None:
        changes["expires_at"] = now() + ttl_s
    moved = update(UploadRow).where(UploadRow.id == upload_id, UploadRow.offset == offset_from)
    return session.scalar(moved.values(changes).returning(UploadRow.id)) is not None


def end_upload(session: Session, upload_id: str) -> bool:
    """The last byte has come and the dataset is stored. False: that was so before."""
    ended = update(UploadRow).where(UploadRow.id == upload_id, UploadRow.finished.is_(False))
    return session.scalar(ended.values(finished=True, locked_until=0.0).returning(UploadRow.id)) is not None


def delete_upload(session: Session, upload_id: str) -> None:
    session.execute(delete(UploadRow).where(UploadRow.id == upload_id))


def stale_uploads(session: Session, limit: int = 1000) -> list[UploadRow]:
    """Uploads past their time and written by nobody: their bytes, row and unfinished dataset can go."""
    query = select(UploadRow).where(UploadRow.expires_at <= now(), UploadRow.locked_until <= now())
    return list(session.scalars(query.order_by(UploadRow.id).limit(limit)))
