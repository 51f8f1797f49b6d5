"""The bench of one fit: its network at the start, its items, its seed. What `prepare` gets to work with."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from domain.recipe import Recipe
from transfer.setting import Setting
from transfer.views import Items


class Pools(NamedTuple):
    """What `draw` chooses from: the items of train, their labels, and what the part prepared."""

    train: Items
    labels: NDArray[np.int64]
    prepared: Mapping[str, Tensor]


class Bench:
    def __init__(self, setting: Setting, fold: int) -> None:
        self.setting = setting
        self.fold = fold
        self.train, self.val = setting.items(fold)
        self.seed = setting.seed(fold)
        self.net, self.start = setting.borrow(self.seed)

    @property
    def recipe(self) -> Recipe:
        return self.setting.recipe

    @property
    def train_labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.setting.problem.labels[self.train]
        return labels

    def batches(self, items: Items, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation inputs and targets of `items`, in their order."""
        for at in range(0, len(items), size):
            chunk = items[at : at + size]
            yield self.setting.problem.evaluation_inputs(chunk), self.setting.problem.targets(chunk)
