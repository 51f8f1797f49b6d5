"""What frozen stages make of the pictures, worked out once and read in every epoch, by every trial.

Exact where the stages are frozen in eval mode and an item has finitely many looks: on val always; in training without
augmentation, or with `data.views` different views of each item. Items are taken in fixed chunks, so that an activation
has the same bits whoever asked for it first. Those of a source that nothing has touched are shared: by folds, by later
trials, and, where the order names a folder, by all processes of the machine and all jobs on the dataset.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.network import Network
from transfer.activations import CHUNK, Activations, created, in_memory, opened
from transfer.pace import N_ITEMS, Keeping, best_of
from transfer.setting import TEST, VAL, Setting
from transfer.views import Items
from transfer.warm import Shelf, file_key

FORMAT = 1
MAX_BYTES = 1 << 30  # in memory
MAX_SHARED_BYTES = 8 << 30  # on disk
MAX_PASSED_BYTES = 1 << 30  # on disk, of evaluation pixels and of all training looks each, kept for others alone
MARGIN = 1.3  # by which keeping must win
SHARED_BY = 4  # trials, by a cautious guess


Above = Callable[[int | None], Sequence["Prefix"]]


class Prefix:
    """The activations after the first `depth` stages of a network, of one look at each item.

    `view` is which of the recipe's views, None: evaluation pixels. It outlives the trial that opened it, so it holds on
    to none of what the trial is set in: pictures, networks.
    """

    def __init__(self, setting: Setting, depth: int, *, view: int | None = None, folder: Path | None = None) -> None:
        self.depth, self._view = depth, view
        split = np.asarray(setting.pack.split)
        kept = np.flatnonzero(split != TEST)
        # Where val is val for all trials its items stand together: phases that read those alone compute few others.
        self._rows = kept[np.argsort(split[kept] != VAL, kind="stable")] if setting.order.n_folds == 1 else kept
        self._row_of = np.full(len(setting.pack.split), -1, np.int64)
        self._row_of[self._rows] = np.arange(len(self._rows))
        self._maps_last = setting.channels_last
        self._facts = _facts(setting, depth, view) if folder is not None else {}
        self._folder = None if folder is None else folder / _name(self._facts)
        self._store = None if self._folder is None else opened(self._folder, self._facts, len(self._rows))
        self.too_large = False
        n_looks = 1 if view is None else 1 + setting.recipe.data.views
        self._most_passed = MAX_PASSED_BYTES // (n_looks * max(1, len(setting.order.cuts)))
        self._refused = False  # as too large to be kept for others

    @property
    def n_bytes(self) -> int:
        return 0 if self._store is None else self._store.n_bytes

    def touch(self) -> None:
        """It is in use: what was used last is evicted last."""
        if self._folder is not None:
            with suppress(OSError):
                os.utime(self._folder)

    def fill(self, setting: Setting, net: Network, items: Items, above: "Above | None" = None) -> bool:
        """Make `items` readable; False if the activations of this pack are too large to keep.

        `above` finds activations of the same look after fewer stages: work begins at the deepest that are there, and
        those that it passes are kept too.
        """
        missing = self._missing(items)
        cuts = above(self._view) if above is not None and missing else ()
        for chunk in missing:
            setting.ask_midway()
            if not self.too_large:
                self._extract(setting, net, chunk, cuts)
        return not self.too_large

    def read(self, items: Items) -> Tensor:
        """(B, ...) activations of `items`."""
        if self._store is None:
            raise RuntimeError("fill before reading")
        found = self._store.read(self._row_of[items])
        return found.movedim(-1, 1) if self._maps_last and found.ndim == 4 else found

    def _missing(self, items: Items) -> list[int]:
        chunks = np.unique(self._row_of[items] // CHUNK).tolist()
        return [chunk for chunk in chunks if not self._has(chunk)]

    def _has(self, chunk: int) -> bool:
        return self._store is not None and self._store.has(chunk)

    @torch.no_grad()
    def _extract(self, setting: Setting, net: Network, chunk: int, above: Sequence["Prefix"]) -> None:
        rows = self._rows[chunk * CHUNK : (chunk + 1) * CHUNK]
        begin = next((prefix for prefix in reversed(above) if prefix._has(chunk)), None)
        found, at = (_looks(setting, rows, self._view), 0) if begin is None else (begin.read(rows), begin.depth)
        with setting.autocast():
            for passed in above:
                if passed.depth > at:
                    found, at = net.prefix(found, passed.depth, begin=at), passed.depth
                    passed._put(chunk, found, passing=True)
            found = net.prefix(found, self.depth, begin=at)
        self.too_large = not self._put(chunk, found)

    def _put(self, chunk: int, found: Tensor, *, passing: bool = False) -> bool:
        """Whether there is room for such activations of all rows; those that are passed may take little, of disk."""
        if self._maps_last and found.ndim == 4:
            found = found.movedim(1, -1)  # rows of a channels-last batch are then plain rows of the store
        if self._store is None and not (passing and self._refused):
            self._store = self._made(found, passing=passing)
            self._refused = self._store is None
        if self._store is not None:
            self._store.put(chunk, found)
        return self._store is not None

    def _made(self, like: Tensor, *, passing: bool) -> Activations | None:
        n_bytes = len(self._rows) * like[0].numel() * like.element_size()
        most_bytes = self._most_passed if passing else MAX_SHARED_BYTES
        if self._folder is not None and like.device.type == "cpu" and n_bytes <= most_bytes:
            shared = created(self._folder, self._facts, len(self._rows), like)
            if shared is not None:
                return shared
        return in_memory(len(self._rows), like) if n_bytes <= MAX_BYTES and not passing else None


SHARED: Shelf[Prefix] = Shelf(2 * MAX_BYTES, lambda prefix: prefix.n_bytes)
DIGESTS: Shelf[str] = Shelf(16)


def open_prefix(setting: Setting, depth: int, *, untouched: bool, view: int | None = None) -> Prefix:
    """The activations after `depth` stages: shared ones if the stages are the source's as loaded."""
    if not untouched or not _is_shared(setting):
        return Prefix(setting, depth, view=view)
    data = setting.recipe.data
    looks = None if view is None else (view, data.augmentation, data.flip)
    folds = setting.order.n_folds > 1
    folder = None if setting.order.activations is None else Path(setting.order.activations)
    # With the folder: what a probe keeps, for itself, must not pass for what others find.
    key: Hashable = (setting.start_key, setting.pack_key, depth, setting.precision, looks, folds, folder)
    SHARED.shrink()
    found = SHARED.get(key, lambda: Prefix(setting, depth, view=view, folder=folder))
    found.touch()
    return found


def _is_shared(setting: Setting) -> bool:
    """Whether stages that nothing has trained are the same in other trials."""
    return setting.start_key is not None and not any(part.says("rebuild") for part in setting.parts)


class Kept:
    """What the first `depth` stages of a network, which a phase does not train, make of the pictures: one `Prefix` for
    every look. `looks` says whether the phase's own looks are read too, and `shown` are those of the present epoch."""

    def __init__(self, setting: Setting, net: Network, depth: int, *, untouched: bool, looks: bool) -> None:
        self.depth, self.looks = depth, looks
        self.shown: Prefix | None = None
        self._setting, self._net, self._untouched = setting, net, untouched
        self._prefixes: dict[tuple[int, int | None], Prefix] = {}

    def prefix(self, view: int | None, depth: int | None = None) -> Prefix:
        key = depth or self.depth, view
        if key not in self._prefixes:
            self._prefixes[key] = open_prefix(self._setting, key[0], untouched=self._untouched, view=view)
        return self._prefixes[key]

    def filled(self, view: int | None, items: Items) -> Prefix | None:
        """The activations of `view`, `items` readable among them; None if they are too large to keep. Other trials of
        the job may read those after fewer stages."""
        prefix = self.prefix(view)
        return prefix if prefix.fill(self._setting, self._net, items, self._above) else None

    def _above(self, view: int | None) -> list[Prefix]:
        """Where other trials of the job cut before this one, the shallowest first; in files, or not at all."""
        order = self._setting.order
        if order.activations is None or not (self._untouched and _is_shared(self._setting)):
            return []
        return [self.prefix(view, cut) for cut in order.cuts if 0 < cut < self.depth]

    def show(self, view: int | None, items: Items) -> None:
        """An epoch of these looks begins."""
        self.shown = self.filled(view, items)


def pays(setting: Setting, net: Network, depth: int, *, n_shown: int, n_items: int, n_looks: int) -> bool:
    """Whether keeping what the first `depth` stages make of every look of every item costs less than computing it
    whenever it is shown:

        n_shown (c - r) >= 1.3 n_items n_looks (c + r) / T

    n_shown: items that the trial shows; c, r: seconds of computing and of reading one, timed once a machine and noted,
    reading from memory and from files that the system still holds, r = 0 without a clock; T: trials that read what one
    has stored. What is there already has no say: kept and computed activations may differ by rounding, and a trial must
    end with the same bits whoever came before it. A resume point holds c and r.
    """
    n_trials = SHARED_BY if setting.order.activations is not None else 1
    kept = MARGIN * n_items * n_looks / n_trials
    if n_looks == 0 or n_shown < kept:  # whatever reading takes
        return False
    timed = setting.keeping(depth, lambda: measured(setting, net, depth))
    return timed is None or n_shown * (timed.computing_s - timed.reading_s) >= kept * sum(timed)


@torch.no_grad()
def measured(setting: Setting, net: Network, depth: int) -> Keeping:
    """Seconds an item of computing and reading what `depth` stages, in eval mode, make of a look of the recipe's."""
    items = np.resize(np.arange(len(setting.pack.labels)), N_ITEMS)
    found: list[Tensor] = []

    def compute() -> None:
        with setting.autocast():
            found[:] = [net.prefix(_looks(setting, items, 0), depth)]

    computing_s = best_of(compute, setting.device) / N_ITEMS
    rows = np.random.default_rng(0).permutation(CHUNK)
    Path(setting.order.scratch).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=setting.order.scratch) as folder:
        store = created(Path(folder) / "timed", {}, CHUNK, found[0]) if setting.device.type == "cpu" else None
        store = store or in_memory(CHUNK, found[0])
        store.put(0, found[0].repeat(CHUNK // N_ITEMS, *[1] * (found[0].ndim - 1)))
        return Keeping(computing_s, best_of(lambda: store.read(rows), setting.device) / CHUNK)


def _looks(setting: Setting, items: Items, view: int | None) -> Tensor:
    problem = setting.problem
    found: Tensor = problem.evaluation_inputs(items) if view is None else problem.view(items, view, setting.recipe.data)
    return found


def _facts(setting: Setting, depth: int, view: int | None) -> dict[str, Any]:
    """Everything that the bits depend on."""
    weights, pack, data = str(setting.trial.source.weights), setting.pack, setting.recipe.data
    return {
        "format": FORMAT, "folds": setting.order.n_folds > 1, "torch": torch.__version__,
        "weights": DIGESTS.get(file_key(weights), lambda: _sha256(weights)),
        "backbone": setting.recipe.backbone, "depth": depth, "items": pack.content_hash,
        "pixels": [pack.canvas, pack.crop, pack.resize, pack.interpolation],
        "preprocessing": setting.preprocessing.model_dump(mode="json"),
        "view": None if view is None else [view, data.augmentation, data.flip],
        "precision": setting.precision, "channels_last": setting.channels_last,
        "device": setting.device.type, "n_threads": setting.order.n_threads,
    }  # fmt: skip


def _name(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
