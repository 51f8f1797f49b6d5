"""Selective joint fine-tuning: beside every target picture a source picture that looks like it (Ge & Yu, CVPR 2017).

    L = L_task + source_weight * mean_b CE(source head(features of the source pictures), their classes)

Each target item has its K_i nearest source pictures by `transfer.descriptors` (symmetrised Kullback-Leibler divergence
of Gabor histograms). In every epoch it is paired with one of them, drawn evenly. All begin with K_i = k0; after every
epoch those that the network finds hard, on evaluation pixels, get more:

    misclassified                      K_i <- K_i + 4 k0
    right but uncertain                K_i <- K_i + 2 k0        entropy of its probabilities >= 0.1 log C
    right and certain                  as it was

up to 1500, or all pictures of the source. The source's head (Cs, D) is new, shares the features (B, D) with the
target's, and is left out of the checkpoint. Both losses are means over the batch.

The paper weighs both losses by 1/2: source_weight 1 at twice our learning rate. Its rounds are trainings of their own;
here a round is an epoch, counted from the beginning of each phase, and the threshold of uncertainty is our choice.
Source and target go through the network one after the other: in mode "train" batch norm normalises each with its own
statistics, and the running ones are those of both.

Cost: about twice a step of plain fine-tuning; one evaluation of train per epoch; descriptors of all pictures, and
n_target n_source divergences, once.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from domain.space import FloatRange, IntRange
from models.network import Network
from transfer.bench import Bench, Drawn, Pools
from transfer.descriptors import grey, neighbours
from transfer.evaluate import log_softmax
from transfer.grafting import fresh_head
from transfer.phase import Outcome, Rebuilt, Site
from transfer.step import Step
from transfer.warm import file_key

SPACE = {
    "k0": IntRange(low=10, high=300, log=True, default=50),
    "source_weight": FloatRange(low=0.1, high=1.0, default=0.5),
}
NEEDS = ("start", "source_data")
HEAD_NAME = "joint_head"
NEAREST, GRANTED = "selective_joint/nearest", "selective_joint/granted"
MOST = 1500  # neighbours of an item
WRONG, UNSURE = 4, 2  # times k0
UNCERTAIN = 0.1  # share of the largest entropy
BATCH = 64


@torch.no_grad()
def prepare(bench: Bench, *, k0: int, source_weight: float) -> dict[str, Tensor]:  # noqa: ARG001 - K_i grow in draw
    """Rows of the source's pack, (n_train, K) nearest first, as many as any item can ever get."""
    data = bench.source_data
    if data is None:
        raise ValueError("selective_joint needs a source dataset")

    def make() -> dict[str, Tensor]:
        places = neighbours(
            lambda: _pictures(bench, bench.batches(bench.train, BATCH)), len(bench.train),
            _pictures(bench, data.batches(data.items, BATCH)), min(MOST, len(data.items)),
        )  # fmt: skip
        return {NEAREST: torch.from_numpy(data.items)[places.long()].int()}

    file = file_key(Path(str(bench.setting.trial.source_pack)) / "pack.json")  # the folder may be written anew
    return bench.once(("selective_joint", file), make)


def _pictures(bench: Bench, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
    seen_with = bench.setting.preprocessing
    for inputs, _ in batches:
        bench.ask()
        yield grey(inputs, seen_with.mean, seen_with.std)


def rebuild(net: Network, site: Site, *, k0: int, source_weight: float) -> Rebuilt:  # noqa: ARG001
    """A head for the source's classes beside the target's."""
    net.add_module(HEAD_NAME, fresh_head(net.feature_dim, site.n_source_classes, site.rng))
    return Rebuilt(net, new=(HEAD_NAME,), train_only=(HEAD_NAME,))


def draw(
    pools: Pools, outcome: Outcome | None, rng: np.random.Generator,  # noqa: ARG001
    *, k0: int, source_weight: float,  # noqa: ARG001
) -> Drawn:  # fmt: skip
    order = rng.permutation(len(pools.train))
    nearest = pools.prepared[NEAREST].numpy()
    if GRANTED in pools.state:
        granted = pools.state[GRANTED].numpy() + k0 * extra(pools.predict(), pools.labels)
    else:
        granted = np.full(len(pools.train), k0)
    granted = np.minimum(granted, nearest.shape[1])
    pools.state[GRANTED] = torch.from_numpy(granted)
    places = (rng.random(len(granted)) * granted).astype(np.int64)  # one of the first K_i
    return Drawn(pools.train[order], source=nearest[order, places[order]].astype(np.int64))


def loss(step: Step, *, k0: int, source_weight: float) -> Tensor:  # noqa: ARG001
    if source_weight == 0:
        return torch.zeros((), device=step.inputs.device)
    logits = step.net.get_submodule(HEAD_NAME)(step.look(step.source_inputs).pooled.float())
    return source_weight * functional.cross_entropy(logits, step.source_targets)


def extra(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:  # (n, C), (n,) -> (n,)
    """How many times k0 more neighbours each item gets after a round."""
    log_p = log_softmax(logits)
    entropy = -(np.exp(log_p) * log_p).sum(1)
    unsure = entropy >= UNCERTAIN * np.log(logits.shape[1])
    wrong = logits.argmax(1) != labels
    return np.where(wrong, WRONG, np.where(unsure, UNSURE, 0)).astype(np.int64)
