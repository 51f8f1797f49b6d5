"""A prepared dataset: one uncompressed zip of `manifest.json` and `items/<sha256>`, the original bytes of each item."""

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from domain.dataset import Item, Manifest

MANIFEST = "manifest.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def member(item_id: str) -> str:
    return f"items/{item_id}"


def read_manifest(items_zip: Path) -> Manifest:
    with zipfile.ZipFile(items_zip) as archive:
        return Manifest.model_validate_json(archive.read(MANIFEST))


def read_item(archive: zipfile.ZipFile, item: Item) -> bytes:
    """The original bytes of an item of an open prepared zip."""
    return archive.read(item.member)


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
