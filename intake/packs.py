"""A prepared dataset at one resolution, as arrays that a trial maps into memory."""

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intake.prepared import Prepared, open_prepared
from intake.preprocess import classification as preprocess

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
    ids: NDArray[np.bytes_]  # (N,), mapped from disk
    content_hash: str


def pack(
    items_zip: Path, folder: Path, *, resize: int, crop: int, interpolation: str, n_threads: int | None = None
) -> None:
    """Build the pack in `folder`, which appears whole or not at all; done at once if it is there already."""
    if (folder / "pack.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        with open_prepared(items_zip) as items:
            canvases = _canvases(items, resize, crop, interpolation, n_threads or os.cpu_count() or 1)
            side = preprocess.canvas_side(resize, crop)
            _write_pixels(partial / "pixels.npy", canvases, (len(items.ids), side, side, 3))
            _write_facts(partial, items, canvas=side, crop=crop, resize=resize, interpolation=interpolation)
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
    ids = folder / "ids.npy"
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
        # Packs that were built earlier have the ids among the facts.
        ids=np.load(ids, mmap_mode="r") if ids.exists() else np.array(facts["ids"], np.bytes_),
        content_hash=facts["content_hash"],
    )


def _canvases(
    items: Prepared, resize: int, crop: int, interpolation: str, n_threads: int
) -> Iterator[NDArray[np.uint8]]:
    """Decoded by a few threads (Pillow lets go of the interpreter), a chunk ahead at most."""
    with ThreadPoolExecutor(n_threads) as threads, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the items were checked; Pillow warns of what it can read all the same

        def decode(row: int) -> NDArray[np.uint8]:
            image = preprocess.load_rgb(BytesIO(items.read(row)))
            return preprocess.canvas(image, resize, crop, interpolation)

        for start in range(0, len(items.ids), _CHUNK):
            yield from threads.map(decode, range(start, min(start + _CHUNK, len(items.ids))))


def _write_pixels(path: Path, canvases: Iterator[NDArray[np.uint8]], shape: tuple[int, ...]) -> None:
    """As `np.save` would, item by item; mapping the file would count against the memory limit of the process."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for canvas in canvases:
            file.write(canvas.tobytes())


def _write_facts(folder: Path, items: Prepared, **facts: int | str) -> None:
    columns = {"ids": items.ids, "labels": items.labels, "split": items.split, "fold": items.fold}
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)
    manifest = items.manifest
    all_facts = {
        "n": len(items.ids), **facts, "classes": manifest.classes, "content_hash": manifest.content_hash
    }  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(all_facts), "utf-8")


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
