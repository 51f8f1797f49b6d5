"""Activations of frozen stages on evaluation pixels, worked out once and read in every epoch.

Exact where the stages are frozen in eval mode and an item always looks the same: on val always, in training without
augmentation. Items are taken in fixed chunks, so that an activation has the same bits whoever asked for it first; those
of a source nobody has touched yet are shared by all folds and by later trials of the process.
"""

from collections.abc import Hashable

import numpy as np
import torch
from torch import Tensor

from models.network import Network
from transfer.setting import TEST, Setting
from transfer.views import Items
from transfer.warm import Shelf

CHUNK = 64
MAX_BYTES = 1 << 30


class Prefix:
    """The activations after the first `depth` stages of a network.

    It outlives the trial that opened it, so it holds on to none of what the trial is set in: pictures, networks.
    """

    def __init__(self, setting: Setting, depth: int) -> None:
        self._depth = depth
        self._rows = np.flatnonzero(np.asarray(setting.pack.split) != TEST)
        self._row_of = np.full(len(setting.pack.split), -1, np.int64)
        self._row_of[self._rows] = np.arange(len(self._rows))
        self._done = np.zeros(-(-len(self._rows) // CHUNK), bool)
        self._store: Tensor | None = None
        self._maps_last = setting.channels_last
        self.too_large = False

    @property
    def n_bytes(self) -> int:
        return 0 if self._store is None else self._store.numel() * self._store.element_size()

    def fill(self, setting: Setting, net: Network, items: Items) -> bool:
        """Make `items` readable; False if the activations of this pack are too large to keep."""
        rows = self._row_of[items]
        for chunk in np.unique(rows // CHUNK):
            if not self._done[chunk] and not self.too_large:
                self._extract(setting, net, int(chunk))
        return not self.too_large

    def read(self, items: Items) -> Tensor:
        """(B, ...) activations of `items`."""
        if self._store is None:
            raise RuntimeError("fill before reading")
        found = self._store[torch.from_numpy(self._row_of[items]).to(self._store.device)]
        return found.movedim(-1, 1) if self._maps_last and found.ndim == 4 else found

    @torch.no_grad()
    def _extract(self, setting: Setting, net: Network, chunk: int) -> None:
        window = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        with setting.autocast():
            found = net.prefix(setting.problem.evaluation_inputs(self._rows[window]), self._depth)
        if self._maps_last and found.ndim == 4:
            found = found.movedim(1, -1)  # rows of a channels-last batch are then plain rows of the store
        if self._store is None:
            shape = (len(self._rows), *found.shape[1:])
            if np.prod(shape, dtype=np.int64) * found.element_size() > MAX_BYTES:
                self.too_large = True
                return
            self._store = torch.empty(shape, dtype=found.dtype, device=found.device)
        self._store[window] = found
        self._done[chunk] = True


SHARED: Shelf[Prefix] = Shelf(2 * MAX_BYTES, lambda prefix: prefix.n_bytes)


def open_prefix(setting: Setting, depth: int, *, untouched: bool) -> Prefix:
    """The activations after `depth` stages: the process's own if the stages are the source's as loaded."""
    if not untouched or setting.start_key is None or any(part.says("rebuild") for part in setting.parts):
        return Prefix(setting, depth)
    key: Hashable = (setting.start_key, setting.pack_key, depth, setting.order.precision)
    SHARED.shrink()
    return SHARED.get(key, lambda: Prefix(setting, depth))
