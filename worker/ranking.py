"""Ranks the sources of a job by what their features already know of its classes, before anything is trained; the same
look gives the meta-features by which later jobs find this one."""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domain.catalogue import catalogue
from domain.history import Meta
from domain.lot import LotOrder, TrialOrder
from models.network import Network
from transfer.ranking import Candidate, rank
from transfer.setting import TRAIN, Setting
from transfer.similarity import class_means, distances, emd, similarity
from transfer.views import Items

log = logging.getLogger(__name__)

MAX_ITEMS = 500
MAX_SOURCE_ITEMS = 2000
MAX_LOOK_S = 15.0  # per source: a large one on a small machine is ranked on fewer items, and so are all others
BATCH_SIZE = 64

Floats = NDArray[np.float64]


def examined(order: LotOrder, ranked: Collection[str]) -> dict[str, Any]:
    """The ranking of the sources of the trials in `ranked`, where there is a choice, and the job's meta-features as the
    best of them sees them."""
    wanted = tuple(trial for trial in order.trials if trial.trial_id in ranked)
    found, seconds = looks(order.model_copy(update={"trials": wanted}))
    ranking = ranking_by(found, seconds)
    best = next((t for t in wanted if t.recipe.source == ranking.get("ranks_first")), None)
    if best is None:
        return ranking | {"meta": sizes(order, order.trials[0]).model_dump()}
    scores = ranking["ranking"][0]["scores"]
    meta = sizes(order, best).model_copy(
        update={
            "source": best.recipe.source, "backbone": best.recipe.backbone, "probe_accuracy": scores.get("ridge"),
            "scores": scores, **nearness(order, best, found[best.recipe.source]),
        }
    )  # fmt: skip
    return (ranking if len(wanted) > 1 else {}) | {"meta": meta.model_dump()}


def looks(order: LotOrder) -> tuple[dict[str, Candidate], dict[str, float]]:
    """What each source makes of the same items, where those are numbers, and the seconds that took."""
    found: dict[str, Candidate] = {}
    seconds: dict[str, float] = {}
    for trial in order.trials:
        began = time.perf_counter()
        candidate = look(order, trial)
        seconds[trial.recipe.source] = time.perf_counter() - began
        if np.isfinite(candidate.features).all():
            found[trial.recipe.source] = candidate
    n_common = min((len(candidate.labels) for candidate in found.values()), default=0)
    return {ref: candidate.first(n_common) for ref, candidate in found.items()}, seconds


def ranking_by(found: Mapping[str, Candidate], seconds: Mapping[str, float]) -> dict[str, Any]:
    """Every score of the sources that were looked at, best first; nothing if none can be scored. What they are worth
    on ImageNet, where known, has a vote. `seconds` of an entry are those of its look and an equal part of the scoring.
    """
    began = time.perf_counter()
    try:
        ranking = rank(found, known={ref: elsewhere(ref) for ref in found})
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):  # too few items: no reason to refuse the job
        log.warning("the sources could not be ranked", exc_info=True)
        return {}
    share = (time.perf_counter() - began) / max(1, len(found))
    entries = [
        {
            "rank": place, "source": ref, "mean_rank": ranking.mean_rank[ref], "scores": ranking.scores[ref],
            "n_items": len(found[ref].labels), "seconds": seconds[ref] + share,
        }
        for place, ref in enumerate(ranking.order, 1)
    ]  # fmt: skip
    if not entries:
        return {}
    return {"ranking": entries, "ranked_by": list(ranking.counted), "ranks_first": ranking.order[0]}


def elsewhere(ref: str) -> dict[str, float]:
    """The accuracy on ImageNet of published weights: a ranking that knows nothing of the target, and is hard to beat
    (Chaves et al. 2025)."""
    kind, _, backbone = ref.partition(":")
    weights = catalogue().backbone(backbone).weights if kind == "torchvision" else ()
    return {"imagenet": weights[0].accuracy / 100} if weights and weights[0].accuracy is not None else {}


def sizes(order: LotOrder, trial: TrialOrder) -> Meta:
    """How many items of train there are, of what, and at which resolution the trial would see them."""
    setting = Setting(order, trial, lambda _: "go")
    labels = setting.problem.labels[np.asarray(setting.pack.split) == TRAIN]
    counts = np.bincount(labels, minlength=len(order.classes))
    return Meta(
        n_train=len(labels), n_classes=len(order.classes), per_class_mean=float(counts.mean()),
        per_class_min=int(counts.min()), resolution=trial.recipe.data.resolution,
        chance=float(counts.max() / max(1, len(labels))),
    )  # fmt: skip


def nearness(order: LotOrder, trial: TrialOrder, candidate: Candidate) -> dict[str, float]:
    """How near the dataset is to the source dataset, as the trial's source sees both; nothing where none is named.

    `similarity` is that of Cui et al., whose gamma is tied to the scale of the features; `distance` has no scale: one
    is the mean distance between two classes of the source dataset.
    """
    setting = Setting(order, trial, lambda _: "go")
    data = setting.source_data
    if data is None:
        return {}
    items = some(data.items, trial.recipe.seed, MAX_SOURCE_ITEMS)
    net, _ = setting.borrow(setting.seed(0))
    features, _ = _seen(net.eval(), None, data.inputs, items)
    setting.give_back(net)
    labels = data.labels[items[: len(features)]]
    source = class_means([(torch.from_numpy(features), torch.from_numpy(labels))], data.n_classes)
    target = class_means(
        [(torch.from_numpy(candidate.features), torch.from_numpy(candidate.labels))], len(order.classes)
    )
    known = source.of(np.flatnonzero(source.counts))
    between = distances(known.means, known.means)
    apart = between.sum() / max(1, between.size - len(between))
    moved = emd(source.means, source.weights, target.means, target.weights)
    found = {"similarity": similarity(moved)} | ({"distance": moved / apart} if apart > 0 else {})
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def look(order: LotOrder, trial: TrialOrder) -> Candidate:
    """Pooled features (n, D) of a source on evaluation pixels, and what its own linear head says (n, Cs)."""
    setting = Setting(order, trial, lambda _: "go")
    items = some(setting.items(0)[0], trial.recipe.seed)
    net, start = setting.borrow(setting.seed(0))
    linear = start.head is not None and set(start.head) == {"weight", "bias"}
    features, said = _seen(net.eval(), start.head if linear else None, setting.problem.evaluation_inputs, items)
    setting.give_back(net)
    return Candidate(features, setting.problem.labels[items[: len(features)]], said)


def _seen(
    net: Network, head: Mapping[str, Tensor] | None, inputs: Callable[[Items], Tensor], items: Items
) -> tuple[Floats, Floats | None]:
    """Pooled features of the first of the items, as many as the time allows, and what a linear head says of them."""
    features: list[Floats] = []
    probabilities: list[Floats] = []
    until = time.perf_counter() + MAX_LOOK_S
    with torch.inference_mode():
        for at in range(0, len(items), BATCH_SIZE):
            if features and time.perf_counter() > until:
                break
            pooled = net.prefix(inputs(items[at : at + BATCH_SIZE]), net.n_stages).float()
            features.append(pooled.double().cpu().numpy())
            if head is not None:
                weight, bias = (head[name].to(pooled) for name in ("weight", "bias"))
                probabilities.append((pooled @ weight.T + bias).double().softmax(1).cpu().numpy())
    return np.concatenate(features), np.concatenate(probabilities) if probabilities else None


def some(items: Items, seed: int, most: int = MAX_ITEMS) -> Items:
    """At most so many of them in a random order, so that the first of them are a fair sample too."""
    chosen: Items = np.random.default_rng(seed).permutation(items)[:most]
    return chosen
