"""Zip files, read strictly: one directory, at the end, of entries that start at byte 0 and do not overlap.

`zipfile` parses the directory; what it tolerates (prefixes, trailing bytes, overlapping entries, wrong sizes) is
refused here, and the bytes are inflated here so that a size that lies is noticed.
"""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from domain.errors import Invalid
from intake.ledger import Ledger, Member, check_ratio, corrupt, forbidden, too_many_files
from intake.limits import Limits
from intake.names import escape

_END = struct.Struct("<4s4H2LH")  # signature, disk, disk of directory, n here, n, size, offset, comment length
_END64 = struct.Struct("<4sQ2H2L4Q")  # …, n here, n, size, offset
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY_SIZE, _LOCAL_SIZE = 46, 30
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_UTF8 = 0x800


class _Directory(NamedTuple):
    offset: int
    size: int
    n_entries: int


def members(path: Path, limits: Limits) -> Iterator[Member]:
    """The files of a zip. Everything that the directory can tell is checked before the first is given."""
    with path.open("rb") as file:
        directory = _find_directory(file)
        _count_entries(file, directory, limits)
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except UnicodeDecodeError:
            raise Invalid("archive_bad_name", "a name in the archive is not UTF-8 although it says so") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise corrupt(str(error)) from None
        starts = _data_offsets(file, infos, directory)
        ledger = Ledger(limits)
        found = [
            (name, info, start)
            for info, start in zip(infos, starts, strict=True)
            if (name := _check_entry(info, ledger, limits))
        ]
        for name, info, start in found:
            yield Member(name, info.file_size, partial(_read, file, info, start))


def _find_directory(file: BinaryIO) -> _Directory:
    size = file.seek(0, 2)
    tail_start = max(0, size - _END.size - 0xFFFF)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise corrupt("it has no end record; the upload may be incomplete")
    _, disk, directory_disk, _, n, n_bytes, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise corrupt("bytes follow its end record")
    end = tail_start + at
    locator = _LOCATOR64.size + _END64.size
    if end >= locator:
        file.seek(end - locator)
        record = file.read(locator)
        if record[_END64.size :].startswith(b"PK\6\7"):
            if not record.startswith(b"PK\6\6"):
                raise corrupt("its zip64 end record is missing")
            *_, disk, directory_disk, _, n, n_bytes, offset = _END64.unpack_from(record)
            end -= locator
    if disk or directory_disk:
        raise corrupt("it is one volume of several")
    if offset + n_bytes != end:
        raise corrupt("something stands before its first entry or between its directory and its end")
    return _Directory(offset, n_bytes, n)


def _count_entries(file: BinaryIO, directory: _Directory, limits: Limits) -> None:
    """Walk the directory without building anything, so that a huge or lying one costs no memory."""
    if directory.n_entries > limits.max_files:
        raise too_many_files(limits)
    file.seek(directory.offset)
    left, n = directory.size, 0
    while left > 0:
        head = file.read(_ENTRY_SIZE)
        if len(head) < _ENTRY_SIZE or not head.startswith(b"PK\1\2"):
            raise corrupt("its directory breaks off")
        rest = sum(struct.unpack_from("<3H", head, 28))
        file.seek(rest, 1)
        left -= _ENTRY_SIZE + rest
        n += 1
        if n > limits.max_files:
            raise too_many_files(limits)
    if left or n != directory.n_entries:
        raise corrupt("its directory does not hold what its end record says")


def _data_offsets(file: BinaryIO, infos: list[zipfile.ZipInfo], directory: _Directory) -> list[int]:
    """Where the bytes of every entry start; Invalid if any two entries share bytes."""
    starts = []
    for info in infos:
        file.seek(info.header_offset)
        head = file.read(_LOCAL_SIZE)
        if len(head) < _LOCAL_SIZE or not head.startswith(b"PK\3\4"):
            raise corrupt("an entry is not where its directory says")
        starts.append(info.header_offset + _LOCAL_SIZE + sum(struct.unpack_from("<2H", head, 26)))
    spans = sorted((info.header_offset, start + info.compress_size) for info, start in zip(infos, starts, strict=True))
    if not spans:
        return []
    if spans[0][0] != 0:
        raise corrupt("it does not start with its first entry")
    ends = [end for _, end in spans]
    nexts = [start for start, _ in spans[1:]] + [directory.offset]
    if any(end > start for end, start in zip(ends, nexts, strict=True)):
        raise Invalid("archive_overlap", "entries of the archive share the same bytes")
    return starts


def _check_entry(info: zipfile.ZipInfo, ledger: Ledger, limits: Limits) -> str | None:
    """The clean name of a file, None for a folder."""
    raw = _decode(info)
    if info.flag_bits & _ENCRYPTED:
        raise Invalid("archive_encrypted", "the archive is encrypted; upload it without a password")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise forbidden(raw, "a link or a device")
    folder = raw.endswith(("/", "\\"))
    name = ledger.enter(raw, info.file_size, folder=folder)
    if folder:
        return None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Invalid(
            "archive_unsupported", f"{escape(name)!r} is packed with method {info.compress_type}; use ordinary deflate",
            path=escape(name),
        )  # fmt: skip
    check_ratio(info.compress_size, info.file_size, limits, name)
    return name


def _decode(info: zipfile.ZipInfo) -> str:
    """The name as written. Without the UTF-8 flag `zipfile` assumes cp437, but macOS writes UTF-8 unflagged."""
    name = info.orig_filename  # `filename` is already cut at a NUL
    if info.flag_bits & _UTF8:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _read(file: BinaryIO, info: zipfile.ZipInfo, start: int) -> bytes:
    shown = escape(info.filename)
    if info.compress_size > info.file_size + info.file_size // 1000 + 1024:
        raise corrupt(f"the size of {shown!r} is not what its directory says")
    file.seek(start)
    data = file.read(info.compress_size)
    if info.compress_type == zipfile.ZIP_DEFLATED:
        inflate = zlib.decompressobj(-15)
        try:
            data = inflate.decompress(data, info.file_size + 1)
        except zlib.error as error:
            raise corrupt(f"{shown!r}: {error}") from None
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise corrupt(f"{shown!r} does not have the size and checksum its directory says")
    return data
