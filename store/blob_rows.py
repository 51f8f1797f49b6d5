"""Who needs which blob. A blob goes with its last reference; one without a row is swept after a lease, never sooner.

Rows first, bytes last: a row is written after its bytes are stored, bytes are deleted after the row's deletion is
committed. Whatever is interrupted leaves bytes without a row, which the sweep finds.
"""

from collections.abc import Iterable, Iterator

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from domain.ports import BlobInfo
from store.inserts import insert
from store.tables import BlobRefRow, BlobRow


def add_blob(session: Session, workspace_id: str, key: str, info: BlobInfo, owner_id: str) -> None:
    """Note a stored blob and its first reference; noting it again updates what is known of it."""
    facts = {"size_bytes": info.size_bytes, "sha256": info.sha256}
    noted = insert(session, BlobRow).values(key=key, workspace_id=workspace_id, **facts)
    session.execute(noted.on_conflict_do_update(index_elements=[BlobRow.key], set_=facts))
    add_ref(session, key, owner_id)


def add_ref(session: Session, key: str, owner_id: str) -> None:
    """One more dataset, source, trial or job that needs this blob."""
    session.execute(insert(session, BlobRefRow).values(key=key, owner_id=owner_id).on_conflict_do_nothing())


def blob_info(session: Session, key: str) -> BlobInfo | None:
    row = session.get(BlobRow, key)
    return None if row is None else BlobInfo(row.size_bytes, row.sha256)


def drop_refs(session: Session, *owner_ids: str) -> list[str]:
    """Give up all that these owners need; returns the keys that nobody needs now, their rows deleted."""
    if not owner_ids:
        return []
    query = delete(BlobRefRow).where(BlobRefRow.owner_id.in_(owner_ids)).returning(BlobRefRow.key)
    return _forget(session, session.scalars(query.execution_options(synchronize_session=False)))


def drop_ref(session: Session, key: str, owner_id: str) -> list[str]:
    """Give up one blob of one owner; returns the key if nobody else needs it."""
    query = delete(BlobRefRow).where(BlobRefRow.key == key, BlobRefRow.owner_id == owner_id).returning(BlobRefRow.key)
    return _forget(session, session.scalars(query.execution_options(synchronize_session=False)))


def unreferenced(session: Session, keys: Iterable[str]) -> list[str]:
    """Those of `keys` (as a blob store lists them) that no row knows of."""
    left: list[str] = []
    for batch in _batches(keys, 500):
        known = set(session.scalars(select(BlobRow.key).where(BlobRow.key.in_(batch))))
        left += [key for key in batch if key not in known]
    return left


def used_bytes(session: Session, workspace_id: str) -> int:
    return int(session.scalar(select(func.sum(BlobRow.size_bytes)).where(BlobRow.workspace_id == workspace_id)) or 0)


def _forget(session: Session, keys: Iterable[str]) -> list[str]:
    gone: list[str] = []
    for batch in _batches(sorted(set(keys)), 500):
        # The lock orders this against a concurrent add_ref, whose foreign key locks the same row.
        locked = select(BlobRow.key).where(BlobRow.key.in_(batch)).order_by(BlobRow.key).with_for_update()
        session.execute(locked)
        still = select(BlobRefRow.key).where(BlobRefRow.key.in_(batch))
        dead = delete(BlobRow).where(BlobRow.key.in_(batch), BlobRow.key.not_in(still)).returning(BlobRow.key)
        gone += session.scalars(dead.execution_options(synchronize_session=False))
    return sorted(gone)


def _batches(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for key in keys:
        batch.append(key)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
