"""Pages of a list, newest first. The cursor is the place of the last row; rows inserted meanwhile shift nothing."""

import base64
import binascii
import json
from typing import Generic, NamedTuple, TypeVar

from sqlalchemy import Select, tuple_
from sqlalchemy.orm import Session

from domain.errors import Invalid
from store.tables import DatasetRow, JobRow, SourceRow

R = TypeVar("R", DatasetRow, JobRow, SourceRow)
T = TypeVar("T")


class Page(NamedTuple, Generic[T]):
    items: list[T]
    next_cursor: str | None


def page(session: Session, query: Select[R], row: type[R], *, limit: int, cursor: str | None) -> Page[R]:
    """The rows of `query` behind `cursor`, by (created_at, id) descending."""
    if cursor is not None:
        at, row_id = read_cursor(cursor, (float, str))
        query = query.where(tuple_(row.created_at, row.id) < tuple_(at, row_id))
    found = list(session.scalars(query.order_by(row.created_at.desc(), row.id.desc()).limit(limit + 1)))
    if len(found) <= limit:
        return Page(found, None)
    last = found[limit - 1]
    return Page(found[:limit], write_cursor(last.created_at, last.id))


def write_cursor(*place: float | str) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def read_cursor(cursor: str, kinds: tuple[type, ...]) -> list[float | str]:
    """What `write_cursor` wrote; Invalid("bad_cursor") for anything else."""
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if isinstance(place, list) and [type(p) for p in place] == list(kinds) and all(map(_storable, place)):
            return place
    except (ValueError, binascii.Error, RecursionError):
        pass
    raise Invalid("bad_cursor", "this cursor was not given by this list; leave it out to start at the beginning")


def _storable(value: float | str) -> bool:
    """Whether either database takes it: no NUL and no surrogate in a text, no number beyond its columns."""
    return value.isascii() and value.isprintable() if isinstance(value, str) else abs(value) < 2**31
