"""A prepared dataset: one uncompressed zip of `manifest.json` and `items/<sha256>`, the original bytes of each item."""

import codecs
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from domain.dataset import Item, Manifest, Split
from intake.elements import stream
from intake.zips import find_directory

MANIFEST = "manifest.json"
SPLIT_CODES = {Split.TRAIN: 0, Split.VAL: 1, Split.TEST: 2}
_EPOCH = (1980, 1, 1, 0, 0, 0)
_ROW = np.dtype([("id", "S64"), ("label", "<i8"), ("split", "i1"), ("fold", "i1")])
_PLACE = np.dtype([("name", "S70"), ("start", "<u8"), ("size", "<u8"), ("crc", "<u4")])
_ENTRY = struct.Struct("<16x3L3H8xL")  # CRC, packed size, size; bytes of name, extra field, comment; offset
_LOCAL = struct.Struct("<26x2H")  # bytes of name and extra field, which the bytes of the item follow
_IN_EXTRA = 0xFFFFFFFF  # the number itself stands in the extra field, in 8 bytes
_CHUNK_BYTES = 1 << 20


def member(item_id: str) -> str:
    return f"items/{item_id}"


def read_manifest(items_zip: Path) -> Manifest:
    """The whole manifest: an object per item."""
    with zipfile.ZipFile(items_zip) as archive:
        return Manifest.model_validate_json(archive.read(MANIFEST))


@dataclass(frozen=True, slots=True)
class Prepared:
    """An open prepared zip, its items as rows of numbers: the objects that `zipfile` and `read_manifest` make of a
    million items take more than two gigabytes."""

    manifest: Manifest  # without its items
    ids: NDArray[np.bytes_]  # (N,), in the order of the manifest, as are all
    labels: NDArray[np.int64]
    split: NDArray[np.int8]  # SPLIT_CODES
    fold: NDArray[np.int8]
    file: BinaryIO
    places: NDArray[Any]  # (N,) _PLACE

    def read(self, row: int) -> bytes:
        """The original bytes of an item; several threads may read at once."""
        place = self.places[row]
        data = b"".join(_chunks(self.file, place))
        if zlib.crc32(data) != place["crc"]:
            raise zipfile.BadZipFile(f"the bytes of {place['name'].decode()} have changed")
        return data


@contextmanager
def open_prepared(items_zip: Path) -> Iterator[Prepared]:
    with items_zip.open("rb") as file:
        places = np.fromiter(_places(file), _PLACE)
        facts: dict[str, Any] = {}
        rows = np.fromiter(_rows(file, places[places["name"] == MANIFEST.encode()][0], facts), _ROW)
        by_name = np.argsort(places["name"])
        names = np.char.add(member("").encode(), rows["id"])
        found = by_name[np.searchsorted(places["name"], names, sorter=by_name).clip(max=len(places) - 1)]
        places = places[found]
        if not np.array_equal(places["name"], names):
            raise zipfile.BadZipFile("items of the manifest are missing")
        ids, labels, split, fold = (np.ascontiguousarray(rows[column]) for column in ("id", "label", "split", "fold"))
        manifest = Manifest.model_validate(facts | {"items": ()})
        yield Prepared(manifest, ids, labels, split, fold, file, places)


def _places(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int]]:
    """Every entry of the zip's directory."""
    directory = find_directory(file)
    file.seek(directory.offset)
    for _ in range(directory.n_entries):
        crc, *numbers, n_name, n_extra, n_comment, offset = _ENTRY.unpack(file.read(_ENTRY.size))
        name, extra, _ = file.read(n_name), file.read(n_extra), file.read(n_comment)
        wide = iter(struct.unpack_from(f"<{max(0, n_extra - 4) // 8}Q", extra, min(4, n_extra)))
        _, size, start = (next(wide) if number == _IN_EXTRA else number for number in (*numbers, offset))
        yield name, start, size, crc


def _rows(file: BinaryIO, place: Any, facts: dict[str, Any]) -> Iterator[tuple[str, int, int, int]]:
    """The items of the manifest; what else it says goes into `facts`."""
    for key, value in stream(codecs.iterdecode(_chunks(file, place), "utf-8"), "items"):
        if key == "items":
            item = Item.model_validate(value)
            yield item.id, item.label, SPLIT_CODES[item.split], item.fold
        else:
            facts[key] = value


def _chunks(file: BinaryIO, place: Any) -> Iterator[bytes]:
    """The bytes of an entry, without moving the file's own position: other threads read too."""
    head = os.pread(file.fileno(), _LOCAL.size, int(place["start"]))
    start = int(place["start"]) + _LOCAL.size + sum(_LOCAL.unpack(head))
    end = start + int(place["size"])
    for at in range(start, end, _CHUNK_BYTES):
        yield os.pread(file.fileno(), min(_CHUNK_BYTES, end - at), at)


class Writer:
    """Builds the zip under a temporary name; the target appears whole, at the end, or not at all."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._partial = target.with_name(f".{target.name}.{os.getpid()}.partial")

    def __enter__(self) -> Self:
        self._zip = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_STORED)
        return self

    def add(self, item_id: str, data: bytes) -> None:
        self._write(member(item_id), data)

    def finish(self, manifest: Manifest) -> None:
        self._write(MANIFEST, manifest.model_dump_json().encode())
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

    def _write(self, name: str, data: bytes) -> None:
        self._zip.writestr(zipfile.ZipInfo(name, _EPOCH), data)
