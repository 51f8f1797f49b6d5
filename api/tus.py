"""The resumable upload: partial bytes in a folder, the offset in a row, one writer at a time.

The offset in the row is committed after the bytes are on disk, so it never promises what is not there; what lies
behind it is cut off when the next part comes. The last part is committed together with the dataset it completes: an
upload never stands at its full length without one.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fastapi import Request

from api.afterwards import wake
from api.site import Site
from api.streams import BROKE_OFF, decode_base64, in_thread, pieces_of
from domain.errors import Conflict, GraftError, Invalid, Unsupported
from domain.ports import BlobInfo
from domain.states import DatasetState
from store import uploads
from store.datasets import finish_upload
from store.moves import become
from store.session import transaction
from store.tables import DatasetRow, UploadRow

VERSION = "1.0.0"
EXTENSIONS = "creation,checksum,expiration,termination"
ALGORITHMS = ("sha1", "sha256")
LOCK_S = 30.0
ORPHAN_S = 3600.0  # a file is given up so long after every upload that could have written it has expired
COMMIT_BYTES = 16 * 1024 * 1024  # so much of a part may be lost when the server is killed in the middle of it


@dataclass(frozen=True, slots=True)
class PartChecksum:
    """What the sender says of one part: `Upload-Checksum: sha256 <base64>`."""

    algorithm: str
    digest: bytes


def check_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != VERSION:
        raise Unsupported(
            "tus_version", f"give the header Tus-Resumable: {VERSION}; this server speaks no other version"
        )


def whole_number(request: Request, header: str) -> int:
    """A header that must be a non-negative whole number."""
    given = request.headers.get(header, "")
    if not (given.isascii() and given.isdigit() and len(given) <= 15):
        raise Invalid("bad_request", f"{header} must be a whole number")
    return int(given)


def read_metadata(header: str) -> dict[str, str]:
    """`Upload-Metadata: key base64,key base64`; a key alone has an empty value."""
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in header.split(","))):
        key, _, coded = pair.partition(" ")
        raw = decode_base64(coded.strip())
        try:
            value = (raw if raw is not None else b"\xff").decode("utf-8")
        except UnicodeDecodeError as error:
            raise Invalid("bad_request", f"Upload-Metadata: the value of {key[:40]!r} is no base64 of UTF-8") from error
        if key in found or not key.isascii():
            raise Invalid("bad_request", f"Upload-Metadata: {key[:40]!r} is given twice or is not ASCII")
        found[key] = value
    return found


def write_metadata(metadata: dict[str, str]) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items())


def read_part_checksum(header: str | None) -> PartChecksum | None:
    if header is None:
        return None
    algorithm, _, coded = header.strip().partition(" ")
    digest = decode_base64(coded)
    if algorithm not in ALGORITHMS or digest is None or len(digest) != hashlib.new(algorithm).digest_size:
        legal = ",".join(ALGORITHMS)
        raise Invalid("bad_checksum", f"Upload-Checksum must be <algorithm> <base64>, the algorithm one of {legal}")
    return PartChecksum(algorithm, digest)


def partial_path(site: Site, upload_id: str) -> Path:
    return site.uploads / upload_id


def true_offset(site: Site, row: UploadRow) -> int:
    """What can be relied on: no more than the row says, no more than lies on the disk."""
    if row.finished:
        return row.length
    try:
        return min(partial_path(site, row.id).stat().st_size, row.offset)
    except FileNotFoundError:
        return 0


async def append(request: Request, site: Site, row: UploadRow, offset: int, checksum: PartChecksum | None) -> int:
    """Take one part at `offset`; returns the new offset. The caller holds the lock."""
    part = _Part(site, row, offset, checksum)
    await in_thread(site, part.open)
    try:
        pieces = pieces_of(request, site.closing, max_bytes=row.length - offset, too_long=lambda: _too_long(row))
        async for piece in pieces:
            await in_thread(site, partial(part.write, piece))
        await in_thread(site, part.end)
    except GraftError as error:
        # A part that broke off is kept as far as it came; anything else is cut back to what was committed.
        broke_off = error.code in BROKE_OFF and checksum is None
        await in_thread(site, part.keep if broke_off else part.cut)
        raise
    finally:
        await in_thread(site, part.close)
    return part.offset


class _Part:
    """Writes one part behind the committed offset; used by one thread at a time."""

    def __init__(self, site: Site, row: UploadRow, offset: int, checksum: PartChecksum | None) -> None:
        self._site = site
        self._row = row
        self._checksum = checksum
        self._digest = hashlib.new(checksum.algorithm) if checksum else None
        self._committed = offset
        self._in_row = row.offset
        self._file: BinaryIO | None = None
        self.offset = offset

    @property
    def file(self) -> BinaryIO:
        assert self._file is not None
        return self._file

    def open(self) -> None:
        descriptor = os.open(partial_path(self._site, self._row.id), os.O_RDWR | os.O_CREAT, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self.cut()

    def write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:  # an unbuffered file may take less than it is given
            rest = rest[self.file.write(rest) :]
        self.offset += len(piece)
        if self._digest is not None:
            self._digest.update(piece)
        elif self.offset - self._committed >= COMMIT_BYTES and self.offset < self._row.length:
            self.keep()

    def end(self) -> None:
        if self._checksum is not None and self._digest is not None and self._digest.digest() != self._checksum.digest:
            raise Invalid(
                "chunk_checksum_mismatch", "the bytes of this part do not have the checksum given; send it again"
            )
        if self.offset == self._row.length:
            os.fsync(self.file.fileno())
            finish(self._site, self._row, self._in_row)
        else:
            self.keep()

    def keep(self) -> None:
        """Bytes to the disk, then the offset to the row. The full length is committed by `finish` alone."""
        if self.offset == self._in_row or self.offset == self._row.length:
            return
        os.fsync(self.file.fileno())
        with transaction(self._site.engine) as session:
            ttl_s = self._site.settings.upload_ttl_s
            if not uploads.move_offset(
                session, self._row.id, offset_from=self._in_row, offset_to=self.offset, ttl_s=ttl_s
            ):
                raise Conflict("upload_offset_conflict", "another request has moved this upload on")
        self._committed = self._in_row = self.offset

    def cut(self) -> None:
        self.offset = self._committed
        self.file.truncate(self._committed)
        self.file.seek(self._committed)

    def close(self) -> None:
        self.file.close()


def finish(site: Site, row: UploadRow, offset_in_row: int) -> None:
    """Every byte is here: into the blob store, then dataset and upload in one transaction."""
    path = partial_path(site, row.id)
    key = f"{row.workspace_id}/datasets/{row.dataset_id}/upload"
    try:
        info = site.blobs.put(key, path, sha256=row.sha256)
    except Invalid as error:
        _reject(site, row, error)
        raise
    _complete(site, row, offset_in_row, key, info)
    path.unlink(missing_ok=True)


def _complete(site: Site, row: UploadRow, offset_in_row: int, key: str, info: BlobInfo) -> None:
    with transaction(site.engine) as session:
        moved = uploads.move_offset(session, row.id, offset_from=offset_in_row, offset_to=row.length)
        dataset = session.get(DatasetRow, row.dataset_id)
        if not moved or dataset is None or dataset.state != DatasetState.UPLOADING:
            raise Conflict("upload_offset_conflict", "another request has ended this upload")
        finish_upload(session, dataset, key, info)
        uploads.end_upload(session, row.id)
        wake(session, site, "prepare_dataset", dataset.id)


def _reject(site: Site, row: UploadRow, error: Invalid) -> None:
    """The whole does not have the checksum that was announced: no part can mend that."""
    with transaction(site.engine) as session:
        dataset = session.get(DatasetRow, row.dataset_id)
        if dataset is not None and dataset.state == DatasetState.UPLOADING:
            told = {"code": error.code, "detail": error.detail, **error.facts}
            become(session, dataset, DatasetState.REJECTED, error=told)
        uploads.delete_upload(session, row.id)
    partial_path(site, row.id).unlink(missing_ok=True)


def terminate(site: Site, row: UploadRow) -> None:
    """Forget the upload and, if it never was complete, its dataset."""
    with transaction(site.engine) as session:
        uploads.delete_upload(session, row.id)
        dataset = session.get(DatasetRow, row.dataset_id)
        if dataset is not None and dataset.state == DatasetState.UPLOADING:
            become(session, dataset, DatasetState.DELETED)
    partial_path(site, row.id).unlink(missing_ok=True)


@asynccontextmanager
async def locked(site: Site, row: UploadRow) -> AsyncIterator[None]:
    """The only writer of an upload; the lock is renewed while this runs and ends by itself if the server dies."""

    def take() -> bool:
        with transaction(site.engine) as session:
            return uploads.lock_upload(session, row.id, LOCK_S)

    def keep() -> None:
        with transaction(site.engine) as session:
            uploads.keep_lock(session, row.id, LOCK_S)

    def give_back() -> None:
        with transaction(site.engine) as session:
            uploads.unlock_upload(session, row.id)

    async def beat() -> None:
        while True:
            await asyncio.sleep(LOCK_S / 3)
            with contextlib.suppress(GraftError):  # the database is away for a moment: the lock still holds
                await in_thread(site, keep)

    if not await in_thread(site, take):
        raise Conflict("upload_locked", "another request is writing to this upload; try again", retry_after_s=2)
    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError, GraftError):
            await beating
        await in_thread(site, give_back)


def expire(site: Site) -> int:
    """Forget uploads that were idle for too long, and partial files that no row knows. Returns how many went."""
    with transaction(site.engine) as session:
        stale = uploads.stale_uploads(session)
    for row in stale:
        terminate(site, row)
    oldest = time.time() - site.settings.upload_ttl_s - ORPHAN_S
    for path in site.uploads.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()
    return len(stale)


def _too_long(row: UploadRow) -> GraftError:
    return Invalid("upload_exceeds_length", f"this upload was announced with {row.length} bytes; the part goes beyond")
