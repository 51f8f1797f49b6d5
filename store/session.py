"""Engines and transactions. The one place that commits.

SQLite: write transactions begin with `BEGIN IMMEDIATE`, so that two writers queue for the lock at the start instead of
failing in the middle; readers use a plain deferred `BEGIN` and see one snapshot, as on Postgres.
"""

import json
import logging
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from domain.errors import Invalid, Unavailable

log = logging.getLogger(__name__)

_READING = "graft_reading"
_BEFORE, _AFTER = "graft_before_commit", "graft_after_commit"
_SQLITE_AWAY = {
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
}  # fmt: skip


def make_engine(url: str) -> Engine:
    """An engine for a SQLite file or a Postgres server; other databases are refused."""
    parsed = make_url(url)
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise Invalid("bad_settings", "database_url: SQLite needs a file, sqlite:////path/to/graft.db")
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, json_serializer=to_json, connect_args={"timeout": 30})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if kind == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"), json_serializer=to_json, pool_pre_ping=True, pool_size=10,
            max_overflow=20, pool_timeout=10, pool_recycle=1800,
            connect_args={"connect_timeout": 5, "application_name": "graft", "keepalives_idle": 30,
                          "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000},
        )  # fmt: skip
    raise Invalid("bad_settings", f"database_url: {kind} is not supported; use sqlite or postgresql")


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """A session that is committed when the block ends, and rolled back when it raises.

    Unavailable("database_unavailable") stands for a server that cannot be reached or gives up a transaction.
    """
    with _translated(), Session(engine, expire_on_commit=False) as session:
        yield session
        for action in session.info.pop(_BEFORE, []):
            action()
        session.commit()
    for action in session.info.pop(_AFTER, []):
        try:
            action()
        except Exception:  # the change is committed: a bell that fails to ring is repaired by the sweep
            log.exception("an action after commit failed")


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session over one snapshot that can write nothing and takes no locks."""
    options: dict[str, Any] = {_READING: True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    snapshots = engine.execution_options(**options)
    with _translated(), Session(snapshots, expire_on_commit=False, autoflush=False) as session:
        yield session


def before_commit(session: Session, action: Callable[[], object]) -> None:
    """Do this as the last thing of the transaction of `session`: what locks a row that many wait for."""
    session.info.setdefault(_BEFORE, []).append(action)


def after_commit(session: Session, action: Callable[[], object]) -> None:
    """Do this once the transaction of `session` is committed (wake a handler, delete a blob), never if it is not."""
    session.info.setdefault(_AFTER, []).append(action)


def to_json(value: Any) -> str:
    """JSON that both databases store: NaN and infinities become null, NUL characters the replacement character."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    except ValueError:
        text = json.dumps(finite(value), allow_nan=False, ensure_ascii=True)
    return json.dumps(_without_nul(value), ensure_ascii=True) if "\\u0000" in text else text


def finite(value: Any) -> Any:
    """The value with None in the place of every NaN and infinity in it: neither is a number that can be ranked."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return finite(value)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise Unavailable("database_unavailable", "every database connection is in use; try again") from error
    except DBAPIError as error:
        if _is_away(error):
            raise Unavailable("database_unavailable", "the database does not answer; try again") from error
        raise


def _is_away(error: DBAPIError) -> bool:
    """Whether the server, its disk or its locks are to blame, and not the statement."""
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in _SQLITE_AWAY
    return isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # BEGIN is ours: see _begin_sqlite
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=30000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    is_reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql(f"PRAGMA query_only={'ON' if is_reading else 'OFF'}")
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")
