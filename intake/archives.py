"""Uploads as a stream of files. What an archive is, its first bytes decide, not its name."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from domain.errors import Invalid
from intake import tars, zips
from intake.ledger import Member, corrupt
from intake.limits import Limits

_FOREIGN = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def kind(path: Path) -> Literal["zip", "tar", "tar.gz"]:
    """The format by magic; Invalid if it is none that is read."""
    with path.open("rb") as file:
        head = file.read(tars.BLOCK)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if tars.is_header(head):
        return "tar"
    for magic, name in _FOREIGN.items():
        if head.startswith(magic):
            raise Invalid("archive_unsupported", f"this is {name}; upload a zip, a tar or a tar.gz")
    raise corrupt("it starts like neither a zip, a tar nor a tar.gz")


def members(path: Path, limits: Limits) -> Iterator[Member]:
    """The files of an archive, one at a time at constant memory. Invalid at the first fault of the archive."""
    if path.stat().st_size > limits.max_archive_bytes:
        raise Invalid(
            "archive_too_large", f"the archive is larger than {limits.max_archive_bytes} bytes",
            limit=limits.max_archive_bytes,
        )  # fmt: skip
    match kind(path):
        case "zip":
            yield from zips.members(path, limits)
        case "tar":
            with path.open("rb") as file:
                yield from tars.members(file, path.stat().st_size, limits)
        case "tar.gz":
            with gzip.open(path) as stream:
                yield from tars.members(stream, path.stat().st_size, limits)


def read_member(path: Path, name: str, limits: Limits) -> bytes:
    """The bytes of the one file of that name, found by `members` before."""
    for member in members(path, limits):
        if member.name == name:
            if member.size > limits.max_item_bytes:
                raise Invalid("item_too_large", f"{name!r} is larger than {limits.max_item_bytes} bytes", path=name)
            return member.read()
    raise LookupError(name)
