"""Ranks the sources of a job by what their features already know of its classes, before anything is trained."""

import logging
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from domain.lot import LotOrder, TrialOrder
from transfer.ranking import Candidate, rank
from transfer.setting import Setting
from transfer.views import Items

log = logging.getLogger(__name__)

MAX_ITEMS = 500
MAX_LOOK_S = 15.0  # per source: a large one on a small machine is ranked on fewer items, and so are all others
BATCH_SIZE = 64

Floats = NDArray[np.float64]


def ranking_of(order: LotOrder) -> dict[str, Any]:
    """Every score of the source of each trial, on the same items of train, best first; nothing if none can be scored.

    `seconds` are those of looking at the items, and an equal part of the scoring.
    """
    found: dict[str, Candidate] = {}
    seconds: dict[str, float] = {}
    for trial in order.trials:
        began = time.perf_counter()
        candidate = look(order, trial)
        seconds[trial.recipe.source] = time.perf_counter() - began
        if np.isfinite(candidate.features).all():
            found[trial.recipe.source] = candidate
    n_common = min((len(candidate.labels) for candidate in found.values()), default=0)
    found = {ref: candidate.first(n_common) for ref, candidate in found.items()}
    began = time.perf_counter()
    try:
        ranking = rank(found)
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


def look(order: LotOrder, trial: TrialOrder) -> Candidate:
    """Pooled features (n, D) of a source on evaluation pixels, and what its own linear head says (n, Cs)."""
    setting = Setting(order, trial, lambda _: "go")
    items = some(setting.items(0)[0], trial.recipe.seed)
    net, start = setting.borrow(setting.seed(0))
    net.eval()
    linear = start.head is not None and set(start.head) == {"weight", "bias"}
    features: list[Floats] = []
    probabilities: list[Floats] = []
    until = time.perf_counter() + MAX_LOOK_S
    with torch.inference_mode():
        for at in range(0, len(items), BATCH_SIZE):
            if features and time.perf_counter() > until:
                break
            pooled = net.prefix(setting.problem.evaluation_inputs(items[at : at + BATCH_SIZE]), net.n_stages).float()
            features.append(pooled.double().cpu().numpy())
            if linear and start.head is not None:
                weight, bias = (start.head[name].to(pooled) for name in ("weight", "bias"))
                probabilities.append((pooled @ weight.T + bias).double().softmax(1).cpu().numpy())
    setting.give_back(net)
    looked_at = np.concatenate(features)
    return Candidate(
        looked_at,
        setting.problem.labels[items[: len(looked_at)]],
        np.concatenate(probabilities) if probabilities else None,
    )


def some(items: Items, seed: int) -> Items:
    """At most `MAX_ITEMS` of them in a random order, so that the first of them are a fair sample too."""
    chosen: Items = np.random.default_rng(seed).permutation(items)[:MAX_ITEMS]
    return chosen
