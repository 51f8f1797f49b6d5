"""Blobs in a local folder: an adapter of `domain.ports.BlobStore`."""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from domain.errors import Unavailable
from domain.ports import BlobInfo
from store.blob_bytes import CHUNK_BYTES, check_key, check_sum, fetch_into, missing, opened


class LocalBlobs:
    """One file per key, named `<key>@<sha256>`: bytes and checksum appear in one rename, and nothing can part them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._partial = self.folder / ".partial"
        self._partial.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, source: BinaryIO | Path, *, sha256: str | None = None) -> BlobInfo:
        place = self.folder / check_key(key)
        partial = self._partial / secrets.token_hex(8)
        try:
            with opened(source) as file, partial.open("xb") as out:
                size_bytes, digest = 0, hashlib.sha256()
                while chunk := file.read(CHUNK_BYTES):
                    out.write(chunk)
                    digest.update(chunk)
                    size_bytes += len(chunk)
                out.flush()
                os.fsync(out.fileno())
            check_sum(digest.hexdigest(), sha256)
            final = place.with_name(f"{place.name}@{digest.hexdigest()}")
            _move(partial, final)
        finally:
            partial.unlink(missing_ok=True)
        for older in self._versions(key):
            if older != final:
                older.unlink(missing_ok=True)
        return BlobInfo(size_bytes, digest.hexdigest())

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        file = self._open(key)  # now, not at the first chunk: a missing blob is an answer, not a broken stream
        return _chunks(file, start, end)

    def info(self, key: str) -> BlobInfo:
        with self._open(key) as file:
            return BlobInfo(os.fstat(file.fileno()).st_size, Path(file.name).name.rpartition("@")[2])

    def fetch(self, key: str, folder: Path) -> Path:
        return fetch_into(self, key, folder)

    def delete(self, key: str) -> None:
        for version in self._versions(key):
            version.unlink(missing_ok=True)
        for parent in (self.folder / key).parents:
            if parent == self.folder:
                break
            try:
                parent.rmdir()
            except OSError:  # not empty, or gone
                break

    def keys(self, prefix: str = "") -> Iterator[str]:
        # Only the deepest folder that the prefix names whole has to be walked.
        start = self.folder / prefix.rpartition("/")[0] if "/" in prefix else self.folder
        for folder, names, files in os.walk(start):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for name in sorted(files):
                key = (Path(folder) / name).relative_to(self.folder).as_posix().rpartition("@")[0]
                if key.startswith(prefix):
                    yield key

    def check(self) -> None:
        """Unavailable if nothing can be written here."""
        try:
            probe = self._partial / f"check-{secrets.token_hex(8)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise Unavailable("blobs_unavailable", f"the blob folder cannot be written: {error.strerror}") from error

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.folder).free

    def age_s(self, key: str) -> float:
        """Seconds since the blob was stored."""
        with self._open(key) as file:
            return time.time() - os.fstat(file.fileno()).st_mtime

    def tidy(self, older_than_s: float) -> None:
        """Remove what interrupted puts have left behind."""
        for partial in self._partial.iterdir():
            try:
                if time.time() - partial.stat().st_mtime > older_than_s:
                    partial.unlink()
            except FileNotFoundError:
                continue

    def _open(self, key: str) -> BinaryIO:
        for _ in range(3):  # a version may be replaced between the listing and the opening
            versions = self._versions(key)
            if not versions:
                break
            try:
                return versions[-1].open("rb")
            except FileNotFoundError:
                continue
        raise missing(key)

    def _versions(self, key: str) -> list[Path]:
        """The files of a key; usually one, for a moment two while a put replaces it, the newest last."""
        place = self.folder / check_key(key)
        found: list[tuple[int, Path]] = []
        try:
            entries = list(os.scandir(place.parent))
        except (FileNotFoundError, NotADirectoryError):
            return []
        for entry in entries:
            if entry.name.rpartition("@")[0] == place.name:
                try:
                    found.append((entry.stat().st_mtime_ns, Path(entry.path)))
                except FileNotFoundError:
                    continue
        return [path for _, path in sorted(found)]


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(partial: Path, final: Path) -> None:
    """Into its folder, which a delete of the last blob in it may remove at any moment."""
    for _ in range(100):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(final)
            sync_folder(final.parent)
        except (FileNotFoundError, FileExistsError):  # mkdir raises the latter for a folder that has just gone
            if final.exists():
                return
            continue
        return
    raise Unavailable("blobs_unavailable", f"the folder {final.parent} disappears again and again")


def _chunks(file: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = None if end is None else max(0, end - start)
        while left is None or left > 0:
            chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk
