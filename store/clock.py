"""The database's clock as an SQL expression: seconds since 1970, the same on every dialect and every machine."""

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction


class now(GenericFunction[float]):
    """`now()` in SQL. On Postgres it is the wall clock, not the start of the transaction."""

    type = Float()
    inherit_cache = True
    name = "graft_now"


@compiles(now, "postgresql")
def _postgres(_element: Any, _compiler: Any, **_: Any) -> str:
    return "(extract(epoch from clock_timestamp()))::double precision"


@compiles(now, "sqlite")
def _sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
