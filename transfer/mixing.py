"""Mixing the weights of finished trials: the mean of some of them as a network that predicts.

Networks mix if they have one start, one form and one size of pictures; between others the mean means nothing. Where one
of them trained with batch norm in train mode, the running statistics of the mean are measured anew: the means over
batches of N_BATCH of the moments of up to N_PICTURES evaluation pictures of train, drawn at random, everything but
batch norm in evaluation mode. Averaged statistics would belong to none of the weights (Izmailov et al. 2018, section
3.2). Elsewhere the statistics are averaged like weights.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from domain.lot import FinishCandidate
from intake.packs import Pack, open_pack
from models.network import Network
from models.weights import read_weights
from transfer import evaluate
from transfer.checkpoint import members_of, preprocessing_at, restore
from transfer.combining import soup
from transfer.evaluate import Floats, Ints, PixelNetwork, evaluation_pixels

TRAIN = 0  # as packs number the splits
N_PICTURES = 1024
N_BATCH = 64


def same_shape(one: FinishCandidate, other: FinishCandidate) -> bool:
    """Whether two networks have the same start, the same form and the same pictures."""
    a, b = one.recipe, other.recipe
    return one.pack == other.pack and (a.source, a.backbone, a.head, a.surgery) == (
        b.source, b.backbone, b.head, b.surgery,
    )  # fmt: skip


class Mixer:
    """Means of the weights of `parts`, whose own predictions (n, C) on `rows` are known; every mean is made once."""

    def __init__(
        self, parts: Sequence[FinishCandidate], logits: Sequence[Floats], rows: Ints,
        *, n_classes: int, device: str, alive: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self._alive = alive
        self._rows, self._n_classes, self._device = rows, n_classes, device
        self._recipe = parts[0].recipe
        self._pack = open_pack(Path(parts[0].pack))
        self._weights = [read_weights(Path(part.weights))[0] for part in parts]
        self._known = {frozenset([place]): z for place, z in enumerate(logits)}
        self._measures_anew = any(part.recipe.batch_norm == "train" for part in parts)

    @property
    def fits(self) -> bool:
        """Whether every part is one network, with weights of the same names and shapes."""
        shapes = [{name: tensor.shape for name, tensor in w.items()} for w in self._weights]
        return not members_of(self._weights[0]) and all(other == shapes[0] for other in shapes[1:])

    def predict(self, places: Sequence[int]) -> Floats:
        """Logits (n, C) of the mean of the parts at `places`."""
        key = frozenset(places)
        if key not in self._known:
            network = self._network(key)
            rows, alive = self._rows, self._alive
            self._known[key] = evaluate.predict(network, self._pack, rows, device=self._device, alive=alive)
        return self._known[key]

    def mix(self, places: Sequence[int]) -> dict[str, Tensor]:
        """The checkpoint of the mean."""
        return dict(self._network(frozenset(places)).network.state_dict())

    def _network(self, places: frozenset[int]) -> PixelNetwork:
        mean = soup.mean([self._weights[place] for place in sorted(places)])
        network: Network = restore(self._recipe, mean, self._n_classes)
        seen = PixelNetwork(network, preprocessing_at(self._recipe, self._pack)).to(self._device).eval()
        if self._measures_anew:
            measure_batch_norm(seen, self._pack, device=self._device)
        return seen


def measure_batch_norm(network: PixelNetwork, pack: Pack, *, device: str = "cpu") -> None:
    """Set the running statistics of batch norm to those of the network's own activations on train."""
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    train = np.flatnonzero(np.asarray(pack.split) == TRAIN)
    rows = np.random.default_rng(0).permutation(train)[:N_PICTURES]
    before = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean over batches
        layer.train()
    with torch.no_grad():
        for start in range(0, len(rows), N_BATCH):
            batch = rows[start : start + N_BATCH]
            if len(batch) > 1 or start == 0:  # one picture has no variance
                network(torch.from_numpy(evaluation_pixels(pack, np.sort(batch))).to(device))
    for layer, momentum in zip(layers, before, strict=True):
        layer.momentum = momentum
        layer.eval()
