"""Asynchronous successive halving on the share of a trial's budget: rungs at 1/9 and 1/3 (search/rungs.py)."""

from domain.rungs import RUNGS
from search.rungs import Rungs
from search.tracks import Pruner


def build() -> Pruner:
    return Rungs(lambda _: RUNGS)
