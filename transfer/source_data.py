"""The source dataset of a trial: the pictures its source was trained on, or some that resemble them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from domain.recipe import DataTreatment
from intake.packs import Pack
from transfer.views import Items

TRAIN = 0


class SourceData:
    """Rows of the packed source dataset. Its own val and test are left alone."""

    def __init__(self, pack: Pack, problem: Any) -> None:
        self._problem = problem
        self.items: Items = np.flatnonzero(np.asarray(pack.split) == TRAIN)
        self.classes = tuple(pack.classes)

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def labels(self) -> NDArray[np.int64]:
        """By row of the pack, as `items` count."""
        labels: NDArray[np.int64] = self._problem.labels
        return labels

    def inputs(self, items: Items) -> Tensor:
        """Evaluation pixels, normalised."""
        inputs: Tensor = self._problem.evaluation_inputs(items)
        return inputs

    def batches(self, items: Items, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation inputs and targets of `items`, in their order."""
        for at in range(0, len(items), size):
            chunk = items[at : at + size]
            yield self.inputs(chunk), self._problem.targets(chunk)

    def training_batch(self, items: Items, seed: int, epoch: int, data: DataTreatment) -> tuple[Tensor, Tensor]:
        """Training views of `items`, and their targets."""
        return self._problem.training_inputs(items, seed, epoch, data), self._problem.targets(items)
