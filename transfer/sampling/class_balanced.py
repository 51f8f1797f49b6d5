"""Class-balanced epochs: rare classes are shown more often. As many draws as there are items, with replacement.

p(item) is proportional to n_class ^ -strength: strength 0 draws evenly over items, 1 evenly over classes.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domain.space import FloatRange
from transfer.bench import Bench, Pools
from transfer.phase import Outcome

SPACE = {"strength": FloatRange(low=0.0, high=1.0, default=1.0)}


def prepare(bench: Bench, *, strength: float) -> Mapping[str, Tensor]:
    """The probability of each training item; labels never change, so once is enough."""
    labels = bench.train_labels
    weight = np.bincount(labels)[labels].astype(np.float64) ** -strength
    return {"probability": torch.from_numpy(weight / weight.sum())}


def draw(
    pools: Pools, outcome: Outcome | None, rng: np.random.Generator, *, strength: float,  # noqa: ARG001
) -> NDArray[np.int64]:  # fmt: skip
    chosen = rng.choice(len(pools.train), size=len(pools.train), p=pools.prepared["probability"].numpy())
    return pools.train[chosen]
