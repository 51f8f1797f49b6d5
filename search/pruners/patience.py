"""Stops a trial whose own curve has not improved for a share of a fit's budget.

    t - argmin_{s <= t} y(s)  >=  PATIENCE        y: loss of the fit at hand; s, t: parts of that fit

Each fold's fit is looked at by itself, for its curve begins anew. A trial that has shown a better loss than the best
finished one is left alone: stopped, it could not win, and its best weights may be the ones to keep.
"""

from collections.abc import Sequence

from search.fits import fit_at_hand
from search.tracks import Pruner, Track, best_complete

PATIENCE = 0.4  # long enough for a schedule that lowers the learning rate to make itself felt


class Patience:
    def stops(self, track: Track, others: Sequence[Track], /) -> bool:
        found, best = fit_at_hand(track), best_complete(others)
        if found is None or not found[1] or best is None or best.value is None:
            return False
        losses = [(loss, part) for part, loss in found[1]]
        least, at = min(losses)
        return least >= best.value and found[1][-1][0] - at >= PATIENCE - 1e-9


def build() -> Pruner:
    return Patience()
