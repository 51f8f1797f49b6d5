"""Rungs: shares of a trial's budget at which only the best of those that got there go on at once.

    y_r       loss of a trial at rung r                       n_r    trials that have reached rung r
    goes on   if fewer than max(1, floor(n_r / eta)) trials were better there, and n_r >= eta if it is its first rung

The others rest at the rung with all they have learned, and go on from there as soon as the same rule lets them: n_r
grows with every trial that arrives (Li et al. 2020, ASHA, with resuming instead of starting over). No trial that is
asked at its first rung leaves it before eta have come there, unless nothing else is left to train; further up one may
lead alone, or a search would be long without a COMPLETE trial. A running trial is asked once at each rung: not again at
one that it has passed, or was promoted from. How far it had come is in its row: a worker that takes it over does not
ask again either.
"""

from collections.abc import Callable, Iterable, Sequence

from domain.rungs import ETA
from domain.states import TrialState
from search.tracks import Track


class Rungs:
    """`rungs_of` says from a trial's number alone where its rungs are, as steps of the grid; trials with the same rungs
    are compared."""

    def __init__(self, rungs_of: Callable[[int], tuple[int, ...]]) -> None:
        self.rungs_of = rungs_of

    def stops(self, track: Track, others: Sequence[Track], /) -> bool:
        return self.rests_at(track, others) is not None

    def rests_at(self, track: Track, others: Sequence[Track]) -> int | None:
        """The rung at which a running trial should rest now; None lets it go on."""
        reached = [rung for rung in self.rungs_of(track.number) if rung in track.grid]
        rung = max(reached, default=0)
        if rung <= track.passed or self._is_among_the_best(track, rung, others):
            return None
        return rung

    def promotable(self, tracks: Iterable[Track], *, last: bool = False) -> list[int]:
        """Trials that rest and may go on by now: from the highest rung first, of one rung the best first. `last` says
        that there is nothing else to train."""
        every = list(tracks)
        found = []
        for track in every:
            rung = track.rung
            if track.state != TrialState.PAUSED or rung is None or rung not in track.grid:
                continue
            others = [other for other in every if other.number != track.number]
            if self._is_among_the_best(track, rung, others, n_least=1 if last else ETA):
                found.append((-rung, track.grid[rung], track.number))
        return [number for _, _, number in sorted(found)]

    def _is_among_the_best(self, track: Track, rung: int, others: Sequence[Track], *, n_least: int = ETA) -> bool:
        rungs = self.rungs_of(track.number)
        losses = [other.grid[rung] for other in others if rung in other.grid and self.rungs_of(other.number) == rungs]
        n_reached = len(losses) + 1
        if rung == rungs[0] and n_reached < n_least:
            return False
        return sum(loss < track.grid[rung] for loss in losses) < max(1, n_reached // ETA)
