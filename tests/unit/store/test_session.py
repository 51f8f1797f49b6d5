import ast
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from domain.errors import Invalid, Unavailable
from store.clock import now
from store.session import after_commit, make_engine, reading, to_json, transaction
from store.tables import ApiKeyRow, WorkspaceRow
from tests.rows import add_workspace

ROOT = Path(__file__).parents[3]
PACKAGES = ("api", "worker", "search", "store", "transfer", "models", "intake", "domain", "graft", "migrations")


def n_workspaces(engine: Engine) -> int:
    with reading(engine) as session:
        return session.scalar(select(func.count()).select_from(WorkspaceRow)) or 0


def test_a_transaction_is_kept_or_undone_as_a_whole(engine: Engine) -> None:
    with transaction(engine) as session:
        add_workspace(session)
        add_workspace(session)
    with suppress(KeyError), transaction(engine) as session:
        add_workspace(session)
        raise KeyError
    assert n_workspaces(engine) == 2


def test_actions_wait_for_the_commit(engine: Engine) -> None:
    seen: list[int] = []
    with transaction(engine) as session:
        add_workspace(session)
        after_commit(session, lambda: 1 / 0)  # a bell that breaks does not undo what was committed
        after_commit(session, lambda: seen.append(n_workspaces(engine)))
        assert seen == []
    assert seen == [1]
    with suppress(KeyError), transaction(engine) as session:
        after_commit(session, lambda: seen.append(0))
        raise KeyError
    assert seen == [1]


def test_a_reading_session_cannot_write(engine: Engine) -> None:
    with pytest.raises(SQLAlchemyError), reading(engine) as session:
        session.execute(text("DELETE FROM workspaces"))
    with pytest.raises((Unavailable, SQLAlchemyError)), reading(engine) as session:
        add_workspace(session)
    with transaction(engine) as session:  # and the connection is fit to write again
        add_workspace(session)


def test_a_reader_sees_one_snapshot_and_holds_up_nobody(engine: Engine) -> None:
    with reading(engine) as session:
        before = session.scalar(select(func.count()).select_from(WorkspaceRow))
        with transaction(engine) as writer:
            add_workspace(writer)
        assert session.scalar(select(func.count()).select_from(WorkspaceRow)) == before
    assert n_workspaces(engine) == 1


def test_writers_of_sqlite_queue_at_the_start(sqlite_engine: Engine) -> None:
    """Each reads before it writes: with a deferred BEGIN, some would fail with `database is locked`."""

    def rename() -> None:
        for _ in range(20):
            with transaction(sqlite_engine) as session:
                row = session.get_one(WorkspaceRow, workspace_id)
                row.name = str(int(row.name) + 1)

    with transaction(sqlite_engine) as session:
        workspace_id = add_workspace(session, "0")
    threads = [threading.Thread(target=rename) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(sqlite_engine) as session:
        assert session.get_one(WorkspaceRow, workspace_id).name == "80"


def test_sqlite_runs_as_it_should(sqlite_engine: Engine) -> None:
    with reading(sqlite_engine) as session:
        asked = [session.scalar(text(f"PRAGMA {p}")) for p in ("journal_mode", "synchronous", "busy_timeout")]
    assert asked == ["wal", 1, 30_000]


def test_foreign_keys_hold(engine: Engine) -> None:
    with pytest.raises(IntegrityError), transaction(engine) as session:
        session.add(ApiKeyRow(id="k", workspace_id="ws_0", name="", prefix="p", secret_sha256=""))


def test_time_is_the_databases_and_goes_on_within_a_transaction(engine: Engine) -> None:
    with transaction(engine) as session:
        times = [session.scalar(select(now())) or 0.0]
        while times[-1] == times[0]:
            times.append(session.scalar(select(now())) or 0.0)
    assert times[-1] > times[0] > 1.7e9


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://somewhere/db"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(Invalid, match="bad_settings"):
        make_engine(url)


def test_a_server_that_is_away_is_unavailable() -> None:
    engine = make_engine("postgresql://nobody@127.0.0.1:9/none")
    for session_of in (transaction, reading):
        with pytest.raises(Unavailable, match="database_unavailable"), session_of(engine) as session:
            session.scalar(select(now()))


def test_json_is_such_as_both_databases_store() -> None:
    assert to_json({"a": [1.5, float("nan"), (float("-inf"), "é\0")]}) == '{"a": [1.5, null, [null, "\\u00e9\\ufffd"]]}'
    assert to_json({"a\0": "\\u0000"}) == '{"a\\ufffd": "\\\\u0000"}'


def test_commits_stand_in_one_place() -> None:
    def commits(file: Path) -> bool:
        tree = ast.parse(file.read_text("utf-8"))
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        return any(isinstance(call, ast.Attribute) and call.attr == "commit" for call in calls)

    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert {file.relative_to(ROOT).as_posix() for file in files if commits(file)} == {"store/session.py"}
