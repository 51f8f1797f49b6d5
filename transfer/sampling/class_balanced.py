"""Class-balanced epochs: rare classes are shown more often. As many draws as there are items, with replacement.

    p(item) = n_c^-strength / sum over items,  n_c the number of train items of the item's class

so that a class is drawn with probability proportional to n_c^(1 - strength): strength 0 draws evenly over items, 1
evenly over classes, 1/2 is square-root sampling. Kang et al., ICLR 2020 (their q is 1 - strength). Some implementations
show each class in turn instead of drawing; the loss is not weighed.

Cost: none.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domain.space import FloatRange
from transfer.bench import Bench, Drawn, Pools
from transfer.phase import Outcome

SPACE = {"strength": FloatRange(low=0.0, high=1.0, default=1.0)}
PROBABILITY = "class_balanced/probability"


def prepare(bench: Bench, *, strength: float) -> Mapping[str, Tensor]:
    """The probability of each training item; labels never change, so once is enough."""
    return {PROBABILITY: torch.from_numpy(probabilities(bench.train_labels, strength))}


def draw(
    pools: Pools, outcome: Outcome | None, rng: np.random.Generator, *, strength: float,  # noqa: ARG001
) -> Drawn:  # fmt: skip
    chosen = rng.choice(len(pools.train), size=len(pools.train), p=pools.prepared[PROBABILITY].numpy())
    return Drawn(pools.train[chosen])


def probabilities(labels: NDArray[np.int64], strength: float) -> NDArray[np.float64]:  # (n,) -> (n,)
    weight = np.bincount(labels)[labels].astype(np.float64) ** -strength
    found: NDArray[np.float64] = weight / weight.sum()
    return found
