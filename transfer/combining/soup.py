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
    members, value = select(singles, lambda places: evaluate(mean([candidates[i] for i in places])))
    return Soup(mean([candidates[i] for i in members]), members, value, singles)


def select(singles: Sequence[float], evaluate: Callable[[tuple[int, ...]], float]) -> tuple[tuple[int, ...], float]:
    """The greedy choice: places in the order they joined, and the value of their mean.

    `singles` is what each candidate is worth alone; `evaluate` says what the mean of the candidates at some places is.
    """
    first, *others = sorted(range(len(singles)), key=lambda i: -singles[i])
    members: tuple[int, ...] = (first,)
    value = singles[first]
    for place in others:
        if (found := evaluate((*members, place))) >= value:
            members, value = (*members, place), found
    return members, value


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
