"""`python -m store.migrate [upgrade | downgrade | check]`: the database of the settings gets this version's tables.

`check` leaves that database alone: it builds a scratch one and fails if the migrations and `store/tables.py` differ.
"""

import argparse
import sys
import tempfile
import time
from importlib.resources import files

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Engine, inspect, text

from domain.errors import GraftError, Unavailable
from store.session import make_engine
from store.settings import load

VERSION_TABLE = "graft_alembic_version"


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade to `revision`. Several processes may do so at once: the database makes them queue."""
    engine = make_engine(url)
    try:
        command.upgrade(_config(engine), revision)
    finally:
        engine.dispose()


def downgrade(url: str, revision: str = "base") -> None:
    engine = make_engine(url)
    try:
        command.downgrade(_config(engine), revision)
    finally:
        engine.dispose()


def check(url: str) -> None:
    """CommandError if a migration is missing here, or if the tables are not what `store/tables.py` says."""
    engine = make_engine(url)
    try:
        command.check(_config(engine))
    finally:
        engine.dispose()


def is_current(engine: Engine) -> bool:
    """Whether the database has every migration of this version."""
    if not inspect(engine).has_table(VERSION_TABLE):
        return False
    with engine.connect() as connection:
        found = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return bool(found == ScriptDirectory(str(files("migrations"))).get_current_head())


def wait_for_database(url: str, timeout_s: float) -> None:
    """For a server that is still starting; Unavailable after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    engine = make_engine(url)
    try:
        while True:
            try:
                engine.connect().close()
                return
            except Exception as error:
                if time.monotonic() > deadline:
                    raise Unavailable("database_unavailable", f"no database after {timeout_s:.0f} s") from error
                time.sleep(0.5)
    finally:
        engine.dispose()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m store.migrate", description=__doc__)
    parser.add_argument("action", nargs="?", default="upgrade", choices=["upgrade", "check", "downgrade"])
    parser.add_argument("revision", nargs="?", help="default: head to upgrade, base to downgrade")
    parser.add_argument("--wait-s", type=float, default=0.0, help="wait this long for the database to come up")
    given = parser.parse_args(arguments)
    try:
        url = "" if given.action == "check" else load().database
        if given.wait_s and url:
            wait_for_database(url, given.wait_s)
        if given.action == "upgrade":
            migrate(url, given.revision or "head")
        elif given.action == "downgrade":
            downgrade(url, given.revision or "base")
        else:
            with tempfile.TemporaryDirectory() as folder:
                scratch = f"sqlite:///{folder}/scratch.db"
                migrate(scratch)
                check(scratch)
    except (GraftError, CommandError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command speaks to its terminal
        return 1
    return 0


def _config(engine: Engine) -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.attributes["engine"] = engine
    return config


if __name__ == "__main__":
    sys.exit(main())
