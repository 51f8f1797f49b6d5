"""Asynchronous successive halving on the share of a trial's budget: rungs at 1/9 and 1/3 (search/rungs.py)."""

import math

from search.curves import GRID
from search.rungs import ETA, Rungs
from search.tracks import Pruner

RUNGS = tuple(math.ceil(GRID / ETA**k) for k in (2, 1))


def build() -> Pruner:
    return Rungs(lambda _: RUNGS)
