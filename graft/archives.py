"""A folder of images becomes one archive: stored, sorted, without times or owners: equal content, equal bytes."""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graft.errors import GraftError

CHUNK_BYTES = 1 << 20
_SKIPPED = frozenset({"__MACOSX", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints", ".git", ".svn", "desktop.ini"})
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold

Told = Callable[[int, int], None]
"""Told how far a transfer is: bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A file ready to be sent."""

    path: Path
    size_bytes: int
    sha256: str
    media_type: str


def folder_files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below `folder` as (name in the archive, path), sorted by name; litter of file managers left out.

    Links to files are followed, links to folders too, but no folder is entered twice on one way down.
    """
    found: list[tuple[str, Path]] = []
    pending: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(folder, "", frozenset())]
    while pending:
        place, prefix, above = pending.pop()
        facts = place.stat()
        identity = (facts.st_dev, facts.st_ino)
        if identity in above:
            raise GraftError(f"{place} links back to a folder that holds it: remove the link")
        for entry in place.iterdir():
            if entry.name in _SKIPPED:
                continue
            if entry.is_dir():
                pending.append((entry, f"{prefix}{entry.name}/", above | {identity}))
            elif entry.is_file():
                found.append((f"{prefix}{entry.name}", entry))
    return sorted(found)


def zip_folder(folder: Path, out: Path, *, tell: Told | None = None) -> Archive:
    """Pack a folder. Images are compressed already, so members are stored; the same content gives the same bytes."""
    files = folder_files(folder)
    if not files:
        raise GraftError(f"{folder} holds no files: point at a folder with one sub-folder of images per class")
    total = sum(path.stat().st_size for _, path in files)
    done = 0
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, path in files:
            member = zipfile.ZipInfo(_utf8(name), date_time=_EPOCH)
            member.create_system = 3  # Unix, wherever this runs
            member.external_attr = 0o100644 << 16
            member.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(member, "w") as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
                    done += len(chunk)
            if tell:
                tell(done, total)
    return Archive(out, out.stat().st_size, sha256_of(out), "application/zip")


def as_archive(path: Path, scratch: Path, *, tell: Told | None = None) -> Archive:
    """What to send for `path`: a folder is packed into `scratch`, a CSV brings its folder, an archive goes as it is."""
    if path.is_dir():
        return zip_folder(path, scratch / "dataset.zip", tell=tell)
    if not path.is_file():
        raise GraftError(f"{path} does not exist: give a folder of images, a CSV file or an archive")
    if path.suffix.lower() == ".csv":
        others = [p.name for p in path.parent.glob("*.csv") if p.name != path.name]
        if others:
            raise GraftError(
                f"{path.parent} holds other CSV files ({', '.join(sorted(others)[:3])}): leave only {path.name}"
            )
        return zip_folder(path.parent, scratch / "dataset.zip", tell=tell)
    media_type = media_type_of(path)
    return Archive(path, path.stat().st_size, sha256_of(path), media_type)


def media_type_of(path: Path) -> str:
    """By the file's first bytes, since names lie. GraftError for anything that is no zip, tar or tar.gz."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "application/zip"
    if start.startswith(b"\x1f\x8b"):
        return "application/gzip"
    if start[257:262] == b"ustar":
        return "application/x-tar"
    raise GraftError(f"{path} is no zip, tar or tar.gz archive: give one of these, a folder or a CSV file")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    for chunk in chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def chunks(path: Path, start: int = 0, end: int | None = None, *, tell: Told | None = None) -> Iterator[bytes]:
    """The bytes [start, end) of a file, piece by piece."""
    total = path.stat().st_size
    left = (total if end is None else end) - start
    with path.open("rb") as file:
        file.seek(start)
        while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
            yield chunk
            left -= len(chunk)
            if tell:
                tell(file.tell(), total)


def _utf8(name: str) -> str:
    """Names that the file system could not decode become readable ones."""
    return os.fsencode(name).decode("utf-8", "replace")
