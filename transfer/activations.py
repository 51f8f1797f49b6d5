"""Activations of frozen stages, kept row by row: in memory, or in a folder that all processes of a machine read.

    facts.json   what the values are of, and what they cost; an entry of other facts is foreign
    values.bin   (n_rows, ...) in the dtype they were computed in
    marks.bin    one uint64 per chunk of rows: 0 while it is missing, 2^32 + the CRC-32 of its bytes once it is there

A chunk is checked against its mark when a process first reads it; one that does not match is missing. Two processes may
fill one chunk at once: they compute the same bits, so the order of their writes does not matter.
"""

import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 64  # rows that are computed together, whoever asks: an activation has the same bits for every reader
FACTS, VALUES, MARKS = "facts.json", "values.bin", "marks.bin"
THERE = 1 << 32


class Activations:
    """Rows of one entry. Without a folder they live as long as the object."""

    def __init__(self, values: Tensor, marks: NDArray[np.uint64], *, shared: bool) -> None:
        self.values, self._marks, self.shared = values, marks, shared
        self._seen = np.zeros(len(marks), bool)  # chunks that this process has written or checked

    @property
    def n_bytes(self) -> int:
        """Of this process's own memory."""
        return 0 if self.shared else self.values.numel() * self.values.element_size()

    def has(self, chunk: int) -> bool:
        """Whether a chunk is there, and whole."""
        if self._seen[chunk]:
            return True
        mark = int(self._marks[chunk])
        self._seen[chunk] = mark != 0 and mark == THERE + _checksum(self._rows(chunk))
        return bool(self._seen[chunk])

    def put(self, chunk: int, rows: Tensor) -> None:
        """Write a chunk; its mark comes last."""
        self._rows(chunk).copy_(rows)
        self._marks[chunk] = THERE + _checksum(self._rows(chunk)) if self.shared else THERE
        self._seen[chunk] = True

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        return self.values[torch.from_numpy(rows).to(self.values.device)]

    def _rows(self, chunk: int) -> Tensor:
        return self.values[chunk * CHUNK : (chunk + 1) * CHUNK]


def n_chunks(n_rows: int) -> int:
    return -(-n_rows // CHUNK)


def in_memory(n_rows: int, like: Tensor) -> Activations:
    """Nothing yet of `n_rows` rows such as those of `like`."""
    values = torch.empty((n_rows, *like.shape[1:]), dtype=like.dtype, device=like.device)
    return Activations(values, np.zeros(n_chunks(n_rows), np.uint64), shared=False)


def opened(folder: Path, facts: Mapping[str, Any], n_rows: int) -> Activations | None:
    """The entry in `folder`; None if there is none, or a foreign or damaged one."""
    try:
        known = json.loads((folder / FACTS).read_text("utf-8"))
        shape, dtype = (n_rows, *known["shape"]), getattr(torch, known["dtype"])
        sizes = (math.prod(shape) * dtype.itemsize, 8 * n_chunks(n_rows))
        whole = sizes == tuple((folder / name).stat().st_size for name in (VALUES, MARKS))
        if known["of"] != json.loads(json.dumps(facts)) or not whole:
            return None
        os.utime(folder)  # what was used last is evicted last
        values = torch.from_file(str(folder / VALUES), shared=True, size=math.prod(shape), dtype=dtype).view(shape)
        return Activations(values, np.memmap(folder / MARKS, np.uint64, "r+"), shared=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError):
        return None  # torch calls it a RuntimeError where a file has gone since it was looked at


def created(folder: Path, facts: Mapping[str, Any], n_rows: int, like: Tensor) -> Activations | None:
    """A new, empty entry in `folder`, in place of what cannot be opened there; None if the disk does not allow it."""
    shape, dtype = (n_rows, *like.shape[1:]), str(like.dtype).removeprefix("torch.")
    n_bytes = math.prod(shape) * like.element_size()
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        partial.mkdir(parents=True)
        if shutil.disk_usage(partial).free < 2 * n_bytes:
            return None
        for name, size in ((VALUES, n_bytes), (MARKS, 8 * n_chunks(n_rows))):
            with (partial / name).open("wb") as file:
                # A full disk is met here, not when a page is written.
                os.posix_fallocate(file.fileno(), 0, size)
        (partial / FACTS).write_text(json.dumps({"of": facts, "shape": shape[1:], "dtype": dtype}), "utf-8")
        _take_the_place(partial, folder, facts, n_rows)
        return opened(folder, facts, n_rows)
    except OSError:
        return None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_the_place(partial: Path, folder: Path, facts: Mapping[str, Any], n_rows: int) -> None:
    try:
        partial.rename(folder)
    except OSError:  # something is there: another process was faster, or it is no good
        if opened(folder, facts, n_rows) is None:
            doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
            folder.rename(doomed)  # who has mapped it keeps its bytes
            shutil.rmtree(doomed, ignore_errors=True)
            partial.rename(folder)


def _checksum(rows: Tensor) -> int:
    return zlib.crc32(rows.contiguous().view(torch.uint8).numpy().data)
