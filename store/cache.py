"""The cache folder of a machine: what can be fetched or built again. Shared by every process on it."""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from domain.ports import BlobStore


def fetch_blob(blobs: BlobStore, key: str, folder: Path) -> Path:
    """A local file with the blob's bytes, checked; two processes that want it at once download it once."""
    with _locked(folder / f"{key.replace('/', '+')}.lock"):
        return blobs.fetch(key, folder)


def once(folder: Path, build: Callable[[Path], object]) -> Path:
    """`folder`, built by `build(temporary folder)` if it is not there yet; it appears whole, and is built once."""
    if _use(folder):
        return folder
    with _locked(folder.with_name(f"{folder.name}.lock")):
        if _use(folder):
            return folder
        partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            partial.mkdir(parents=True)
            build(partial)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def evict(folder: Path, max_bytes: int, *, min_idle_s: float = 3600.0) -> int:
    """Remove the entries of `folder` used longest ago until the rest fits; returns the bytes freed.

    Entries used within `min_idle_s` stay, whatever they weigh: a trial may be about to open them. A process that has
    mapped a removed file keeps its bytes until it is done.
    """
    entries: list[tuple[float, int, Path]] = []
    for path in folder.iterdir() if folder.exists() else ():
        if path.suffix == ".lock":
            continue
        try:
            entries.append((_used_at(path), _size(path), path))
        except FileNotFoundError:
            continue
    total = sum(size for _, size, _ in entries)
    freed = 0
    for used_at, size, path in sorted(entries):
        if total - freed <= max_bytes or time.time() - used_at < min_idle_s:
            break
        doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.replace(doomed)  # gone in one step, as it came
        except FileNotFoundError:
            continue
        if doomed.is_dir():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink(missing_ok=True)
        freed += size
    return freed


def _use(folder: Path) -> bool:
    try:
        os.utime(folder)
    except FileNotFoundError:
        return False
    return True


def _used_at(path: Path) -> float:
    """A file when it was fetched or read last; a folder when it was asked for last: looking into one is reading it."""
    stat = path.stat()
    return stat.st_mtime if path.is_dir() else max(stat.st_atime, stat.st_mtime)


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An exclusive lock on a file that is never removed: a removed one could be locked twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
