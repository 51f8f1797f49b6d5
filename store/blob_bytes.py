"""What both adapters of `domain.ports.BlobStore` share: keys, checksums, and the local copy of a blob."""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from domain.errors import Invalid, NotFound, Unavailable
from domain.ports import BlobStore

CHUNK_BYTES = 1 << 20
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", re.ASCII)


def check_key(key: str) -> str:
    """A key is a relative path of plain names; it can leave no folder and hide nothing."""
    if len(key) > 200 or not _KEY.fullmatch(key):
        raise Invalid("bad_blob_key", f"{key[:80]!r} is no blob key: names of A-Za-z0-9_.- between slashes")
    return key


def check_sum(found: str, wanted: str | None) -> None:
    if wanted is not None and wanted.lower() != found:
        raise Invalid("checksum_mismatch", f"the bytes have sha256 {found}, not {wanted}", sha256=found)


def missing(key: str) -> NotFound:
    return NotFound("blob_not_found", f"there is no blob {key}")


@contextmanager
def opened(source: BinaryIO | Path) -> Iterator[BinaryIO]:
    """A path is opened and closed; a stream is used as it is."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file
    else:
        yield source


def fetch_into(blobs: BlobStore, key: str, folder: Path) -> Path:
    """A local copy named by its content, so that a key written anew is fetched anew. Checked before it appears."""
    info = blobs.info(key)
    place = folder / f"{info.sha256}{Path(key).suffix}"
    if place.exists() and (there := place.stat()).st_size == info.size_bytes:
        # Used just now, says the time of access. That of change stays: warm processes know a file by it.
        os.utime(place, ns=(time.time_ns(), there.st_mtime_ns))
        return place
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{secrets.token_hex(8)}.partial"
    digest = hashlib.sha256()
    try:
        with partial.open("xb") as out:
            for chunk in blobs.read(key):
                out.write(chunk)
                digest.update(chunk)
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != info.sha256:
            detail = f"blob {key} does not have the bytes it was stored with"
            raise Unavailable("blob_corrupt", detail, key=key, expected=info.sha256, found=digest.hexdigest())
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return place
