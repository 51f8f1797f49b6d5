"""A prepared dataset: one uncompressed zip of `items/<sha256>`, the original bytes of each item, and `manifest.json`.

Beside them lie `facts.json`, the manifest without its items, and `rows.npy`, a row of numbers per item; the comment at
the end of the zip says where. A million items are opened by these: the objects that `zipfile` and a manifest make of
them take more than two gigabytes.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from domain.dataset import Manifest, Split

MANIFEST, FACTS, ROWS = "manifest.json", "facts.json", "rows.npy"
SPLIT_CODES = {Split.TRAIN: 0, Split.VAL: 1, Split.TEST: 2}
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ROW = np.dtype([
    ("id", "S64"), ("label", "<i8"), ("split", "i1"), ("fold", "i1"), ("offset", "<u8"), ("size", "<u8"), ("crc", "<u4")
])  # fmt: skip
_LOCAL = struct.Struct("<26x2H")  # an entry's header: bytes of name and extra field, which its data follow
_COMMENT = struct.Struct("<8s6Q")  # signature; offset, size and CRC of the facts, and of the rows
_SIGNATURE = b"graft v1"


class Place(NamedTuple):
    """Where the zip holds an entry: the offset of its header, the size and CRC of its data."""

    offset: int
    size: int
    crc: int


def member(item_id: str) -> str:
    return f"items/{item_id}"


def read_manifest(items_zip: Path) -> Manifest:
    """The whole manifest: an object per item."""
    with zipfile.ZipFile(items_zip) as archive:
        return Manifest.model_validate_json(archive.read(MANIFEST))


@dataclass(frozen=True, slots=True)
class Prepared:
    """An open prepared zip. Its columns are in the order of the manifest."""

    manifest: Manifest  # without its items
    ids: NDArray[np.bytes_]  # (N,)
    labels: NDArray[np.int64]
    split: NDArray[np.int8]  # SPLIT_CODES
    fold: NDArray[np.int8]
    file: BinaryIO
    places: NDArray[Any]  # (N,) of offset, size, crc

    def read(self, row: int) -> bytes:
        """The original bytes of an item; several threads may read at once."""
        return _read(self.file, Place(*self.places[row].tolist()))


@contextmanager
def open_prepared(items_zip: Path) -> Iterator[Prepared]:
    with items_zip.open("rb") as file:
        file.seek(-_COMMENT.size, os.SEEK_END)
        signature, *places = _COMMENT.unpack(file.read())
        if signature == _SIGNATURE:
            manifest = Manifest.model_validate_json(_read(file, Place(*places[:3])))
            rows = np.load(io.BytesIO(_read(file, Place(*places[3:]))))
        else:  # prepared before there were rows
            manifest, rows = _from_manifest(items_zip)
        ids, labels, split, fold = (np.ascontiguousarray(rows[name]) for name in ("id", "label", "split", "fold"))
        yield Prepared(manifest, ids, labels, split, fold, file, rows[["offset", "size", "crc"]])


def _from_manifest(items_zip: Path) -> tuple[Manifest, NDArray[Any]]:
    manifest = read_manifest(items_zip)
    with zipfile.ZipFile(items_zip) as archive:
        places = {entry.filename: Place(entry.header_offset, entry.file_size, entry.CRC) for entry in archive.filelist}
    return manifest.model_copy(update={"items": ()}), _rows(manifest, {i.id: places[i.member] for i in manifest.items})


def _rows(manifest: Manifest, places: Mapping[str, Place]) -> NDArray[Any]:
    return np.fromiter(
        ((i.id, i.label, SPLIT_CODES[i.split], i.fold, *places[i.id]) for i in manifest.items), _ROW
    )  # fmt: skip


def _read(file: BinaryIO, place: Place) -> bytes:
    """The data of an entry, without moving the file's own position: other threads read too."""
    header = os.pread(file.fileno(), _LOCAL.size, place.offset)
    data = os.pread(file.fileno(), place.size, place.offset + _LOCAL.size + sum(_LOCAL.unpack(header)))
    if zlib.crc32(data) != place.crc:
        raise zipfile.BadZipFile("bytes of the prepared dataset have changed")
    return data


class Writer:
    """Builds the zip under a temporary name; the target appears whole, at the end, or not at all."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        self._places: dict[str, Place] = {}

    def __enter__(self) -> Self:
        self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED)
        return self

    def add(self, item_id: str, data: bytes) -> None:
        self._places[item_id] = self._write(member(item_id), data)

    def finish(self, manifest: Manifest) -> None:
        """`manifest` names items that were added."""
        rows = io.BytesIO()
        np.save(rows, _rows(manifest, self._places))
        self._write(MANIFEST, manifest.model_dump_json().encode())
        facts = self._write(FACTS, manifest.model_copy(update={"items": ()}).model_dump_json().encode())
        self._zip.comment = _COMMENT.pack(_SIGNATURE, *facts, *self._write(ROWS, rows.getvalue()))
        self._zip.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._target)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # on a full disk the end of the zip cannot be written either
            self._zip.close()
        self._partial.unlink(missing_ok=True)

    def _write(self, name: str, data: bytes) -> Place:
        entry = zipfile.ZipInfo(name, _EPOCH)
        self._zip.writestr(entry, data)
        return Place(entry.header_offset, len(data), entry.CRC)
