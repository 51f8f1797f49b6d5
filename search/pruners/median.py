"""Stops a trial whose best loss so far is above the median of the finished trials' at the same share of budget.

    min_{s <= t} y(s)  >  median_j y_j(t)        y: loss, smaller is better; t: share of the budget; j: finished trials

The rule of Google Vizier (Golovin et al. 2017, section 3.2.2).
"""

from collections.abc import Sequence
from statistics import median

from domain.rungs import GRID
from search.tracks import Pruner, Track

N_STARTUP = 4  # finished trials before anything is stopped
WARMUP_SHARE = 0.2  # a warm-up and the first epochs say little


class Median:
    def stops(self, track: Track, others: Sequence[Track], /) -> bool:
        step = max(track.grid, default=0)
        finished = [other for other in others if other.complete]
        at_step = [other.grid[step] for other in finished if step in other.grid]
        if step < WARMUP_SHARE * GRID or len(finished) < N_STARTUP or not at_step:
            return False
        return min(track.grid.values()) > median(at_step)


def build() -> Pruner:
    return Median()
