"""What pruners compare: how far each trial of a study has come, and what it showed on its way.

A track is a curve turned so that smaller is better, whatever the objective. Everything a pruner decides follows from
tracks alone, so that any process that has read the same history decides alike.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

from domain.rungs import GRID
from domain.states import TrialState
from search.curves import on_grid


@dataclass(frozen=True)
class Track:
    """One trial: `points` are (share, loss) by share, `rung` is the step of the grid where it rests, if it does, and
    `passed` the one up to which it was let go on: whoever asks says so, from the trial's row."""

    number: int
    state: TrialState
    points: tuple[tuple[float, float], ...] = ()
    value: float | None = None  # its final loss
    rung: int | None = None
    passed: int = 0
    n_folds: int = 1  # whose fits follow one another on the axis of shares

    @cached_property
    def grid(self) -> dict[int, float]:
        """Step of the grid -> loss."""
        return on_grid(self.points)

    @property
    def complete(self) -> bool:
        return self.state == TrialState.COMPLETE and self.value is not None


class Pruner(Protocol):
    def stops(self, track: Track, others: Sequence[Track], /) -> bool:
        """Whether a running trial should go no further now."""
        ...


class Tracks:
    """The tracks of one study, by trial number."""

    def __init__(self, direction: Literal["maximize", "minimize"], *, n_folds: int = 1) -> None:
        self._n_folds = n_folds
        self._sign = -1.0 if direction == "maximize" else 1.0
        self._tracks: dict[int, Track] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._tracks

    def __iter__(self) -> Iterator[Track]:
        return iter(self._tracks.values())

    def put(
        self, number: int, state: TrialState, curve: Iterable[tuple[float, float]], value: float | None,
        *, rung: float | None = None, passed: float | None = None,
    ) -> None:  # fmt: skip
        """What is known of a trial now. `rung` and `passed` are shares of its budget."""
        if state == TrialState.FAILED:  # what it showed says nothing about the others
            self.drop(number)
            return
        self._tracks[number] = Track(
            number, state, self._turned(curve), None if value is None else self._sign * value,
            None if rung is None else round(rung * GRID), round((passed or 0.0) * GRID), self._n_folds,
        )  # fmt: skip

    def drop(self, number: int) -> None:
        self._tracks.pop(number, None)

    def walked(self, number: int, curve: Iterable[tuple[float, float]]) -> Track:
        """The track of a trial with more of its curve; what is known of an earlier stretch stays."""
        track = self._tracks[number]
        further = dict(track.points) | dict(self._turned(curve))
        self._tracks[number] = replace(track, points=tuple(sorted(further.items())))
        return self._tracks[number]

    def others(self, number: int) -> list[Track]:
        return [track for track in self._tracks.values() if track.number != number]

    def _turned(self, curve: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
        return tuple(sorted((share, self._sign * value) for share, value in curve if math.isfinite(value)))


def best_complete(tracks: Iterable[Track]) -> Track | None:
    """The best trial that ran to its end; of equals the earlier one."""
    finished = [(track.value, track.number, track) for track in tracks if track.complete]
    return min(finished, key=lambda entry: entry[:2])[2] if finished else None
