"""Tar streams, read block by block. `tarfile` takes a damaged header for the end and reads extended headers of any
size into memory; here every stream has to end as a tar ends, and an extended header is short."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from typing import Protocol

from domain.errors import Invalid
from intake.ledger import Ledger, Member, check_ratio, corrupt, forbidden, too_large
from intake.limits import MIB, Limits

BLOCK = tarfile.BLOCKSIZE
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
_MAX_EXTENDED = 64 * 1024


class Readable(Protocol):
    def read(self, n: int, /) -> bytes: ...


def members(file: Readable, packed_bytes: int, limits: Limits) -> Iterator[Member]:
    """The files of a tar in the order of the stream, which is read once and to its end."""
    stream = _Stream(file, packed_bytes, limits)
    ledger = Ledger(limits)
    extended: dict[str, str] = {}
    while any(block := stream.take(BLOCK)):
        info = _header(block)
        if info.type in _EXTENDED:
            extended |= _read_extended(stream, info)
            continue
        name, size = extended.get("path", info.name), _size(extended.get("size"), info.size)
        sparse = any(key.startswith("GNU.sparse") for key in extended)
        extended = {}
        if info.type == tarfile.DIRTYPE:
            ledger.enter(name, 0, folder=True)
            continue
        if info.type not in _FILES or sparse:
            raise forbidden(name, "a link, a device or a sparse file")
        payload = _Payload(stream, size)
        yield Member(ledger.enter(name, size, folder=False), size, payload.read)
        payload.skip()
        stream.take(-size % BLOCK)
    stream.check_end()


def is_header(block: bytes) -> bool:
    """Whether a file that starts with `block` is a tar; an empty one starts with zeros."""
    if len(block) < BLOCK:
        return False
    try:
        return not any(block) or bool(tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape"))
    except tarfile.TarError:
        return False


class _Stream:
    """Exact reads that count what they give."""

    def __init__(self, file: Readable, packed_bytes: int, limits: Limits) -> None:
        self._file, self._packed, self._limits = file, packed_bytes, limits
        self._n_bytes = 0

    def take(self, n: int) -> bytes:
        data = self.take_some(n)
        while len(data) < n:
            more = self.take_some(n - len(data))
            if not more:
                raise corrupt("it breaks off; the upload may be incomplete")
            data += more
        return data

    def take_some(self, n: int) -> bytes:
        try:
            data = self._file.read(n)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise corrupt(str(error)) from None
        self._n_bytes += len(data)
        if self._n_bytes > self._limits.max_unpacked_bytes:
            raise too_large(self._limits)
        check_ratio(self._packed, self._n_bytes, self._limits)
        return data

    def check_end(self) -> None:
        while rest := self.take_some(MIB):
            if rest.strip(b"\0"):
                raise corrupt("bytes follow its end")


class _Payload:
    def __init__(self, stream: _Stream, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self) -> bytes:
        n, self._left = self._left, 0
        return self._stream.take(n)

    def skip(self) -> None:
        while self._left:
            self._left -= len(self._stream.take(min(self._left, MIB)))


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError) as error:
        raise corrupt(f"bad header: {error}") from None
    info.name = _text(info.name.encode("utf-8", "surrogateescape"))
    return info


def _read_extended(stream: _Stream, info: tarfile.TarInfo) -> dict[str, str]:
    """What a GNU or pax header says about the next entry."""
    if not 0 <= info.size <= _MAX_EXTENDED:
        raise Invalid("archive_bad_name", "the archive has an extended header of more than 64 KiB")
    data = stream.take(info.size)
    stream.take(-info.size % BLOCK)
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(data.removesuffix(b"\0"))}
    return _parse_pax(data) if info.type in (tarfile.XHDTYPE, b"X") else {}


def _parse_pax(data: bytes) -> dict[str, str]:
    """Records `<length> <key>=<value>\\n`, the length counting the whole record."""
    records: dict[str, str] = {}
    while data:
        digits, space, _ = data.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 9 else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or length > len(data):
            raise corrupt("bad extended header")
        records[_text(key)] = _text(value[:-1])
        data = data[length:]
    return records


def _size(extended: str | None, plain: int) -> int:
    if extended is not None:
        if not (extended.isascii() and extended.isdigit() and len(extended) < 20):
            raise corrupt("bad size")
        return int(extended)
    if plain < 0:
        raise corrupt("bad size")
    return plain


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")
