"""Train on the source classes that are nearest the target's first, then on the target (Cui et al., CVPR 2018).

    score(i) = exp(-0.01 sum_j v_j ||g(s_i) - g(t_j)||_2)

g(s_i), g(t_j) (D,): mean pooled features of source class i and target class j under the start, train splits only,
evaluation pixels, not normalised; v_j: share of target class j. The `k` classes with the largest scores are taken, one
by one, without any claim that together they are the best; classes with fewer than 200 images are left out, unless that
leaves none. How similar the two datasets are as wholes, exp(-0.01 EMD) between their class means, stands in the report.

    phase 1, `share` of the steps   mean cross-entropy of the items of these classes alone, by a head of their own
    phase 2, what is left           the task, from where phase 1 ended, with the target's head untrained until here

The source's head (Cs, D) knows all source classes; the softmax runs over the chosen ones. The regularizer counts in
both phases, every other part in phase 2. The authors train from random weights on subsets of two huge datasets, with
hundreds of classes each; here phase 1 goes on from the source's own weights, and `k` may be small, as sources of few
classes are. An epoch of phase 1 has as many source items as the target has for train.

Cost: one forward pass of both train splits before training; steps as plain fine-tuning's, and the target's views, which
phase 1 does not look at, are cut all the same.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from domain.recipe import SLOTS
from domain.space import FloatRange, IntRange
from models.network import Network
from transfer.bench import Bench, Drawn, Pools
from transfer.grafting import fresh_head
from transfer.phase import Outcome, Phase, Plan, Rebuilt, Site
from transfer.similarity import GAMMA, MIN_IMAGES, Classes, class_means, domain_similarity, nearest_classes
from transfer.source_data import SourceData
from transfer.step import Step
from transfer.warm import file_key

SPACE = {
    "k": IntRange(low=1, high=800, log=True, default=20),
    "share": FloatRange(low=0.1, high=0.9, default=0.5),
}
NEEDS = ("start", "source_data")
HEAD_NAME = "subset_head"
ROWS, CHOSEN = "class_subset/rows", "class_subset/chosen"
BATCH = 64


def prepare(bench: Bench, *, k: int, share: float) -> dict[str, Tensor]:  # noqa: ARG001 - how long is phases' matter
    data = _source_data(bench)
    found = bench.once(("class_subset", _source_file(bench)), lambda: _classes(bench), of_net=True)
    source, target = _two_sides(found)
    similar = float(found["similarity"])
    bench.remark(f"class_subset: source data and train are {similar:.3f} similar, exp(-{GAMMA} EMD) of class means")
    chosen = nearest_classes(source, target, k)
    n_small = int(((source.counts > 0) & (source.counts < MIN_IMAGES)).sum())
    if not len(chosen):
        chosen = nearest_classes(source, target, k, min_images=1)
        bench.remark(f"class_subset: no source class has {MIN_IMAGES} images, so classes of any size were eligible")
    elif n_small:
        bench.remark(f"class_subset: {n_small} source classes with fewer than {MIN_IMAGES} images were left out")
    if len(chosen) < k:
        bench.remark(f"class_subset: {len(chosen)} source classes were taken, there were no {k} to take")
    mask = torch.zeros(data.n_classes, dtype=torch.bool)
    mask[torch.from_numpy(chosen)] = True
    rows = data.items[np.isin(data.labels[data.items], chosen)]
    return {ROWS: torch.from_numpy(rows), CHOSEN: mask.to(bench.setting.device)}


def rebuild(net: Network, site: Site, *, k: int, share: float) -> Rebuilt:  # noqa: ARG001 - the same for any
    """A head for the source's classes beside the target's."""
    net.add_module(HEAD_NAME, fresh_head(net.feature_dim, site.n_source_classes, site.rng))
    return Rebuilt(net, new=(HEAD_NAME,), train_only=(HEAD_NAME,))


def phases(plan: Plan, *, k: int, share: float) -> Generator[Phase, Outcome, None]:  # noqa: ARG001
    yield Phase(
        trainable=tuple(unit for unit in plan.everything if unit != "head"), share=share, teacher="none", keep="last",
        terms={"class_subset": 1.0, "regularizer": 1.0}, mixup_alpha=0.0,
    )  # fmt: skip
    yield Phase(
        trainable=tuple(unit for unit in plan.everything if unit != HEAD_NAME),
        terms={"task": 1.0, **{slot: 1.0 for slot in SLOTS if slot != "sampling"}},
    )


def draw(
    pools: Pools, outcome: Outcome | None, rng: np.random.Generator, *, k: int, share: float,  # noqa: ARG001
) -> Drawn:  # fmt: skip
    items = rng.permutation(pools.train)
    if pools.phase > 0:
        return Drawn(items)
    return Drawn(items, source=in_turn(pools.prepared[ROWS].numpy(), len(items), rng))


def loss(step: Step, *, k: int, share: float) -> Tensor:  # noqa: ARG001
    logits = step.net.get_submodule(HEAD_NAME)(step.look(step.source_inputs).pooled.float())
    return cross_entropy_among(logits, step.source_targets, step.prepared[CHOSEN])


def cross_entropy_among(logits: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:  # (B, Cs), (B,), (Cs,) -> ()
    """Mean cross-entropy of a softmax over the chosen classes; the logits of the others get no gradient."""
    return functional.cross_entropy(logits.masked_fill(~chosen, -torch.inf), targets)


def in_turn(rows: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """n of `rows` in random order, none twice before all have come once."""
    rounds = [rng.permutation(rows) for _ in range(-(-n // len(rows)))]
    return np.concatenate(rounds)[:n]


@torch.no_grad()
def _classes(bench: Bench) -> dict[str, Tensor]:
    """Mean features and sizes of the classes of both datasets, under the network as it starts."""
    found: dict[str, Tensor] = {}
    data = _source_data(bench)
    sides = {
        "source": (data.batches(data.items, BATCH), data.n_classes),
        "target": (bench.batches(bench.train, BATCH), bench.setting.n_classes),
    }
    for which, (batches, n_classes) in sides.items():
        means, counts = class_means(_features(bench, batches), n_classes)
        found[f"{which}/means"], found[f"{which}/counts"] = torch.from_numpy(means), torch.from_numpy(counts)
    source, target = _two_sides(found)
    return found | {"similarity": torch.tensor(domain_similarity(source, target), dtype=torch.float64)}


def _two_sides(found: Mapping[str, Tensor]) -> tuple[Classes, Classes]:
    source, target = (
        Classes(found[f"{which}/means"].numpy(), found[f"{which}/counts"].numpy()) for which in ("source", "target")
    )
    return source, target


def _features(bench: Bench, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for inputs, targets in batches:
        bench.ask()
        yield bench.look(bench.net, inputs).pooled, targets


def _source_file(bench: Bench) -> tuple[str, int, int]:
    """Tells one source dataset from the next, also where a folder was written anew."""
    return file_key(Path(str(bench.setting.trial.source_pack)) / "pack.json")


def _source_data(bench: Bench) -> SourceData:
    if bench.source_data is None:
        raise ValueError("class_subset needs a source dataset")
    return bench.source_data
