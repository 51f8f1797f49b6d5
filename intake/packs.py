"""A prepared dataset at one resolution, as arrays that a trial maps into memory."""

import json
import os
import secrets
import shutil
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from domain.dataset import Item, Manifest, Split
from intake.prepared import read_item, read_manifest
from intake.preprocess import classification as preprocess

SPLIT_CODES = {Split.TRAIN: 0, Split.VAL: 1, Split.TEST: 2}
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Pack:
    """Items in the order of the manifest. The evaluation crop is the exact centre of the canvas."""

    pixels: NDArray[np.uint8]  # (N, P, P, 3), mapped from disk
    labels: NDArray[np.int64]  # (N,)
    split: NDArray[np.int8]  # (N,) 0 train, 1 val, 2 test
    fold: NDArray[np.int8]  # (N,) -1 in test
    canvas: int  # P
    crop: int
    resize: int  # the short side that the canvas was cut from: P, or P + 1
    interpolation: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    content_hash: str


def pack(
    items_zip: Path, folder: Path, *, resize: int, crop: int, interpolation: str, n_threads: int | None = None
) -> None:
    """Build the pack in `folder`, which appears whole or not at all; done at once if it is there already."""
    if (folder / "pack.json").exists():
        return
    manifest = read_manifest(items_zip)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        canvases = _canvases(items_zip, manifest.items, resize, crop, interpolation, n_threads or os.cpu_count() or 1)
        side = preprocess.canvas_side(resize, crop)
        _write_pixels(partial / "pixels.npy", canvases, (len(manifest.items), side, side, 3))
        _write_facts(partial, manifest, canvas=side, crop=crop, resize=resize, interpolation=interpolation)
        _sync(partial)
        try:
            partial.rename(folder)
        except OSError:  # another process was first; its pack is as good
            if not (folder / "pack.json").exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open_pack(folder: Path) -> Pack:
    facts = json.loads((folder / "pack.json").read_text("utf-8"))
    return Pack(
        pixels=np.load(folder / "pixels.npy", mmap_mode="r"),
        labels=np.load(folder / "labels.npy"),
        split=np.load(folder / "split.npy"),
        fold=np.load(folder / "fold.npy"),
        canvas=facts["canvas"],
        crop=facts["crop"],
        resize=facts["resize"],
        interpolation=facts["interpolation"],
        classes=tuple(facts["classes"]),
        ids=tuple(facts["ids"]),
        content_hash=facts["content_hash"],
    )


def _canvases(
    items_zip: Path, items: Sequence[Item], resize: int, crop: int, interpolation: str, n_threads: int
) -> Iterator[NDArray[np.uint8]]:
    """Decoded by a few threads (Pillow lets go of the interpreter), a chunk ahead at most."""
    with zipfile.ZipFile(items_zip) as archive, ThreadPoolExecutor(n_threads) as threads, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the items were checked; Pillow warns of what it can read all the same

        def decode(item: Item) -> NDArray[np.uint8]:
            image = preprocess.load_rgb(BytesIO(read_item(archive, item)))
            return preprocess.canvas(image, resize, crop, interpolation)

        for start in range(0, len(items), _CHUNK):
            yield from threads.map(decode, items[start : start + _CHUNK])


def _write_pixels(path: Path, canvases: Iterator[NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
    """As `np.save` would, item by item; mapping the file would count against the memory limit of the process."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for canvas in canvases:
            file.write(canvas.tobytes())


def _write_facts(folder: Path, manifest: Manifest, **facts: int | str) -> None:
    items = manifest.items
    np.save(folder / "labels.npy", np.array([item.label for item in items], np.int64))
    np.save(folder / "split.npy", np.array([SPLIT_CODES[item.split] for item in items], np.int8))
    np.save(folder / "fold.npy", np.array([item.fold for item in items], np.int8))
    all_facts = {
        "n": len(items), **facts, "classes": manifest.classes, "ids": [item.id for item in items],
        "content_hash": manifest.content_hash,
    }  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(all_facts), "utf-8")


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
