"""Every trial runs to its end."""

from collections.abc import Sequence

from search.tracks import Pruner, Track


class RunOn:
    def stops(self, _track: Track, _others: Sequence[Track]) -> bool:
        return False


def build() -> Pruner:
    return RunOn()
