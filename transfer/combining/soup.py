"""Model soup: the mean of the weights of several fine-tuned networks of one start.

    greedy   candidates in falling order of val, the best one first; each joins the mean if val does not fall by it
    uniform  the mean of all of them

    w = 1/m sum_{i in soup} w_i        elementwise, the same shape for every weight

Wortsman et al., ICML 2022. Only candidates that began from the same source compare: between unrelated networks the mean
means nothing. A greedy soup is never worse on val than the best single candidate; a uniform one can be. Floating-point
buffers (running statistics) are averaged like weights, whole-number ones come from the first of the soup; statistics of
batch norm estimated anew with the mean weights fit better, and `evaluate` is free to do that.

Cost: one evaluation on val per candidate, and one more per candidate that is tried; no training, inference as of one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


class Soup(NamedTuple):
    weights: dict[str, Tensor]
    members: tuple[int, ...]  # places in `candidates`, in the order they joined
    value: float  # of the soup, on val
    singles: tuple[float, ...]  # of each candidate alone


def combine(
    candidates: Sequence[Weights], evaluate: Callable[[Weights], float],
    *, kind: Literal["greedy", "uniform"] = "greedy",
) -> Soup:  # fmt: skip
    _check(candidates)
    singles = tuple(evaluate(c) for c in candidates)
    order = sorted(range(len(candidates)), key=lambda i: -singles[i])
    if kind == "uniform":
        weights = mean([candidates[i] for i in order])
        return Soup(weights, tuple(order), evaluate(weights), singles)
    members = [order[0]]
    weights, value = mean([candidates[order[0]]]), singles[order[0]]
    for place in order[1:]:
        tried = mean([candidates[i] for i in (*members, place)])
        if (found := evaluate(tried)) >= value:
            members.append(place)
            weights, value = tried, found
    return Soup(weights, tuple(members), value, singles)


def mean(candidates: Sequence[Weights]) -> dict[str, Tensor]:
    """Elementwise, summed in double precision; what is not floating-point is the first's."""
    return {
        name: torch.stack([c[name].double() for c in candidates]).mean(0).to(first.dtype)
        if first.is_floating_point() else first.clone()
        for name, first in candidates[0].items()
    }  # fmt: skip


def _check(candidates: Sequence[Weights]) -> None:
    if not candidates:
        raise ValueError("a soup needs at least one candidate")
    shapes = [{name: tensor.shape for name, tensor in c.items()} for c in candidates]
    if any(other != shapes[0] for other in shapes[1:]):
        raise ValueError("candidates of a soup must be the same network: names and shapes of their weights differ")
