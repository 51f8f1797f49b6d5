"""Recipes trained again with other seeds: who is due, and who leads. Pure functions of numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from domain.job import Confirm, Confirmed

REPEATED = "repeat"  # origin of a trial that has the recipe of another one and a seed of its own
MOST = 1 / 3  # of the budget of trials and of time that repeats may take from the search


class Repeat(NamedTuple):
    """A trial that repeats the recipe of trial `of`."""

    number: int
    of: int


def wanted(confirm: Confirm, ranked: Sequence[int], repeats: Iterable[Repeat]) -> list[int]:
    """Which trials are to be repeated next, the best first, every one once before any is a second time.

    `ranked`: numbers of the first trials of their recipes, best first. A repeat that failed is not tried again.
    """
    have = [repeat.of for repeat in repeats]
    top = ranked[: confirm.top]
    return [number for turn in range(confirm.seeds) for number in top if have.count(number) <= turn]


def confirmed(values: Mapping[int, float], repeats: Iterable[Repeat]) -> list[Confirmed]:
    """The recipes with more than one seed, by the number of their first trial; `values` are of COMPLETE trials."""
    seeds: dict[int, list[float]] = {}
    for repeat in sorted(repeats):
        if repeat.number in values and repeat.of in values:
            seeds.setdefault(repeat.of, [values[repeat.of]]).append(values[repeat.number])
    return [
        Confirmed(number=first, values=tuple(found), mean=sum(found) / len(found))
        for first, found in sorted(seeds.items())
    ]
