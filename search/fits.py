"""Where the fits of a trial begin and end on the grid: one fit, or one per fold and a closing one without val."""

from typing import NamedTuple

from domain.rungs import GRID
from search.tracks import Track


class Stretch(NamedTuple):
    """One fit's part of the grid: after `begin`, up to and including `end`."""

    begin: int
    end: int


def ranked_fits(n_folds: int) -> list[Stretch]:
    """The fits that val ranks, in their order."""
    n_fits = 1 if n_folds == 1 else n_folds + 1
    return [Stretch(GRID * fit // n_fits, GRID * (fit + 1) // n_fits) for fit in range(n_folds)]


def fit_at_hand(track: Track) -> tuple[Stretch, list[tuple[float, float]]] | None:
    """The ranked fit that a trial is in, and its curve there as (part of that fit, loss); None in the closing one."""
    share = track.points[-1][0] if track.points else 0.0
    fit = next((fit for fit in ranked_fits(track.n_folds) if share * GRID <= fit.end + 1e-9), None)
    if fit is None:
        return None
    begin, length = fit.begin / GRID, (fit.end - fit.begin) / GRID
    return fit, [((share - begin) / length, loss) for share, loss in track.points if share > begin + 1e-9]
