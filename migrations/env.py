"""Alembic's entry: runs the migrations on the engine that `store.migrate` hands over, one transaction for all."""

from typing import Any

from alembic import context
from sqlalchemy import Connection, Engine, text

from store.migrate import VERSION_TABLE
from store.tables import Base

_LOCK = 0x6772616674  # of all the advisory locks in a Postgres database, the one of Graft's migrations


def run(engine: Engine) -> None:
    with engine.connect() as connection:
        sqlite = connection.dialect.name == "sqlite"
        if sqlite:
            _set_foreign_keys(connection, on=False)  # a batch migration copies and drops tables others point at
        context.configure(
            connection=connection, target_metadata=Base.metadata, version_table=VERSION_TABLE, render_as_batch=True,
            transactional_ddl=True,  # on SQLite too, since BEGIN is ours there: nothing is left half done
            compare_type=True, compare_server_default=_compare_default, include_name=_is_ours,
        )  # fmt: skip
        with context.begin_transaction():
            if not sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            context.run_migrations()
        if sqlite:
            _set_foreign_keys(connection, on=True)


def _set_foreign_keys(connection: Connection, *, on: bool) -> None:
    """Outside a transaction, where alone this pragma has an effect."""
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA foreign_keys={'ON' if on else 'OFF'}")


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Other programs' tables in the same database are none of our business."""
    return kind != "table" or name in Base.metadata.tables


def _compare_default(
    _context: Any, column: Any, _metadata_column: Any, found: str | None, _default: Any, ours: str | None
) -> bool | None:
    """Postgres writes the clock's expression back in its own words; only its presence is compared."""
    return (found is None) != (ours is None) if column.name.endswith("at") else None


run(context.config.attributes["engine"])
