"""Hyperband: several brackets of rungs at once, from bold to patient, for it is unknown how early a curve tells.

    bracket s = 2, 1, 0    has rungs at eta^-s, ..., eta^-1 of the budget; s = 0 runs every trial to its end
    n_s                    ceil((s_max + 1) / (s + 1) eta^s) trials of bracket s in a round: 9, 5 and 3 of 17

Li et al. 2018, Algorithm 1, with the asynchronous rungs of search/rungs.py in each bracket. A trial's bracket follows
from its number: the multiples of the golden ratio, modulo 1, spread any run of numbers over the brackets evenly.
"""

import math
from itertools import accumulate

from domain.rungs import ETA, GRID
from search.rungs import Rungs
from search.tracks import Pruner

S_MAX = 2
GOLDEN = (math.sqrt(5) - 1) / 2
BRACKETS = {s: tuple(math.ceil(GRID / ETA**k) for k in range(s, 0, -1)) for s in range(S_MAX, -1, -1)}
SIZES = {s: math.ceil((S_MAX + 1) / (s + 1) * ETA**s) for s in BRACKETS}


def rungs_of(number: int) -> tuple[int, ...]:
    """The rungs of a trial's bracket."""
    at = number * GOLDEN % 1.0 * sum(SIZES.values())
    ends = accumulate(SIZES.values())
    return next(BRACKETS[s] for s, end in zip(SIZES, ends, strict=True) if at < end)


def build() -> Pruner:
    return Rungs(rungs_of)
