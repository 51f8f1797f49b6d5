"""The running account of an archive that is being read: names, count and bytes, each against its limit."""

from collections.abc import Callable
from typing import NamedTuple

from domain.errors import Invalid
from intake.limits import Limits
from intake.names import clean, escape, fold, is_archive


class Member(NamedTuple):
    """One regular file. `read` gives all its bytes, once, and for a tar only until the next member is asked for."""

    name: str
    size: int
    read: Callable[[], bytes]


def corrupt(why: str) -> Invalid:
    return Invalid("archive_corrupt", f"the archive is damaged: {why}")


def forbidden(name: str, what: str) -> Invalid:
    shown = escape(name)
    return Invalid("archive_forbidden_entry", f"{shown!r} is {what}; only files and folders are read", path=shown)


class Ledger:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seen: set[str] = set()
        self._n_entries = 0
        self._n_bytes = 0

    def enter(self, raw: str, size: int, *, folder: bool) -> str:
        """Check one more entry and give its clean name; Invalid at the first limit passed."""
        self._n_entries += 1
        if self._n_entries > self._limits.max_files:
            raise too_many_files(self._limits)
        name = clean(raw, self._limits)
        if folder:
            return name
        if not name:
            raise Invalid("archive_bad_name", "a file of the archive has no name")
        shown = escape(name)
        if is_archive(name):
            raise Invalid("archive_nested", f"{shown!r} is an archive inside the archive; unpack it first", path=shown)
        key = fold(name)
        if key in self._seen:
            detail = f"{shown!r} stands twice in the archive, case and accents not counted"
            raise Invalid("archive_duplicate_name", detail, path=shown)
        self._seen.add(key)
        self._n_bytes += size
        if self._n_bytes > self._limits.max_unpacked_bytes:
            raise too_large(self._limits)
        return name


def too_many_files(limits: Limits) -> Invalid:
    return Invalid(
        "archive_too_many_files", f"the archive holds more than {limits.max_files} entries", limit=limits.max_files
    )


def too_large(limits: Limits) -> Invalid:
    return Invalid(
        "archive_too_large", f"the archive unpacks to more than {limits.max_unpacked_bytes} bytes",
        limit=limits.max_unpacked_bytes,
    )  # fmt: skip


def check_ratio(packed: int, unpacked: int, limits: Limits, name: str | None = None) -> None:
    if unpacked > limits.ratio_floor_bytes and unpacked > limits.max_ratio * max(packed, 1):
        what = "the archive" if name is None else repr(escape(name))
        raise Invalid(
            "archive_ratio_exceeded", f"{what} unpacks to more than {limits.max_ratio:g} times its size",
            limit=limits.max_ratio, path=None if name is None else escape(name),
        )  # fmt: skip
