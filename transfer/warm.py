"""What a trial process keeps between trials, so that the next one starts at once: packs, starts, networks, activations.

Everything here is keyed by what it was made from, files by path, size and time of change. Trials of a process run one
after another; nothing is locked.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """The most recently used things, up to a size; what does not fit goes, the least recently used first."""

    def __init__(self, capacity: float, size: Callable[[T], float] = lambda _: 1) -> None:
        self._capacity = capacity
        self._size = size
        self._things: OrderedDict[Hashable, T] = OrderedDict()
        SHELVES.add(self)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The thing under `key`, made if it is not there."""
        if key in self._things:
            self._things.move_to_end(key)
            return self._things[key]
        thing = self._things[key] = make()
        self.shrink()
        return thing

    def take(self, key: Hashable) -> T | None:
        """The thing under `key`, and nobody else's from now on."""
        return self._things.pop(key, None)

    def put(self, key: Hashable, thing: T) -> None:
        self._things[key] = thing
        self._things.move_to_end(key)
        self.shrink()

    def shrink(self) -> None:
        """Drop the oldest until the rest fits; the newest stays, whatever its size."""
        while len(self._things) > 1 and sum(map(self._size, self._things.values())) > self._capacity:
            self._things.popitem(last=False)

    def clear(self) -> None:
        self._things.clear()


SHELVES: "weakref.WeakSet[Shelf[Any]]" = weakref.WeakSet()


def forget() -> None:
    """Empty every shelf."""
    for shelf in SHELVES:
        shelf.clear()


def file_key(path: str | Path) -> tuple[str, int, int]:
    """Tells one state of a file from the next."""
    stat = Path(path).stat()
    return str(path), stat.st_size, stat.st_mtime_ns
