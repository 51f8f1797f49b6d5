"""The gradient of a batch: in one go, or of its halves, added up, once memory was too short for that."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from transfer import compiling, memory, warm
from transfer.bench import Bench

Loss = Callable[[slice], tuple[Tensor, list[tuple[str, Tensor]]]]
SMALLEST_SPLIT = 4  # items of a batch that may be halved: batch norm needs two


def gradient(
    bench: Bench, batch: slice, loss: Loss, weights: Iterable[Tensor], *, seed: int | None
) -> dict[str, Tensor]:
    """Leave the gradient of the mean of `loss` over the items of `batch` with `weights`; the mean of every term.

    `loss` gives the mean over a part of the batch, and its terms; `seed` is for what draws from torch's global state,
    as dropout does, for which there is no other way in. Where memory runs out for the first time, halves are
    taken from then on: bench.n_splits and a remark say so. A second time is an error.
    """
    while (found := _tried(bench, batch, loss, seed)) is None:
        _halve(bench, weights)
    return found


def _tried(bench: Bench, batch: slice, loss: Loss, seed: int | None) -> dict[str, Tensor] | None:
    """None if memory is short for the first time. Here its error ends, and with it the hold that it has on what was
    allocated."""
    if seed is not None:
        torch.manual_seed(seed)
    try:
        return _accumulated(batch, bench.n_splits, loss)
    except (RuntimeError, MemoryError) as error:
        too_small = bench.setting.recipe.data.batch_size < SMALLEST_SPLIT
        if not memory.is_exhausted(error) or bench.n_splits > 1 or too_small:
            raise
    return None


def _accumulated(batch: slice, n_splits: int, loss: Loss) -> dict[str, Tensor]:
    """Every part weighs as much as it has items."""
    cuts = np.linspace(batch.start, batch.stop, n_splits + 1).round().astype(int).tolist()
    found: dict[str, Tensor] = {}
    for window in (slice(*ends) for ends in pairwise(cuts) if ends[0] < ends[1]):
        share = (window.stop - window.start) / (batch.stop - batch.start)
        total, terms = loss(window)
        (total if share == 1 else total * share).backward()
        for name, value in terms:
            value = value.detach() if share == 1 else value.detach() * share
            found[name] = found[name] + value if name in found else value.clone()
    return found


def _halve(bench: Bench, weights: Iterable[Tensor]) -> None:
    """From now on half a batch at a time."""
    bench.n_splits = 2
    bench.setting.mode = "eager"  # parts of a batch would take each other's place in the memory of a graph
    bench.remark(
        f"Out of memory with batches of {bench.setting.recipe.data.batch_size}: trained on half a batch at a time, the "
        "gradients added up; batch norm saw halves."
    )
    for weight in weights:
        weight.grad = None
    warm.forget()  # what is kept for later trials may be what was in the way
    compiling.forget()
    memory.empty_cache(bench.setting.device)
