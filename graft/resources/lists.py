"""Lists come in pages; callers want items."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from graft.answers import Page

T = TypeVar("T")


def everything(fetch: Callable[[str | None], Page[T]]) -> Iterator[T]:
    """The items of all pages; a page is fetched when the one before it is used up."""
    cursor: str | None = None
    while True:
        page = fetch(cursor)
        yield from page.items
        cursor = page.next_cursor
        if not cursor:
            return
