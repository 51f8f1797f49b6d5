import hashlib
import hmac
import stat
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, select

from domain.errors import Invalid, NotFound
from store import keys
from store.session import reading, transaction
from store.settings import Settings
from store.tables import ApiKeyRow, WorkspaceRow
from tests.rows import add_workspace


def test_a_key_opens_its_workspace_and_is_nowhere_in_the_table(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        row, plaintext = keys.create_key(session, workspace_id, "laptop")
    prefix, _, secret = plaintext.removeprefix("graft_").partition(".")
    assert len(secret) == 43  # 256 bits in base64
    with reading(engine) as session:
        found = keys.find_key(session, plaintext)
        assert found is not None
        assert (found.id, found.workspace_id, found.prefix) == (row.id, workspace_id, prefix)
        assert found.secret_sha256 == hashlib.sha256(secret.encode()).hexdigest()
        assert secret not in str(vars(found))


@pytest.mark.parametrize("change", ["{p}.{s}x", "{p}.x{s}", "x{p}.{s}", "{p}{s}", "{p}.", "", "{p}.{s}\n", "{p}.é{s}"])
def test_another_text_opens_nothing(sqlite_engine: Engine, change: str) -> None:
    with transaction(sqlite_engine) as session:
        _, plaintext = keys.create_key(session, add_workspace(session), "laptop")
        prefix, secret = plaintext.split(".")
        assert keys.find_key(session, change.format(p=prefix, s=secret)) is None


def test_an_unknown_prefix_is_compared_like_a_wrong_secret(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []

    def spy(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    real = hmac.compare_digest
    with transaction(sqlite_engine) as session:
        _, plaintext = keys.create_key(session, add_workspace(session), "laptop")
        monkeypatch.setattr(hmac, "compare_digest", spy)
        for wrong in (plaintext[:-1] + "_", "graft_00000000." + "a" * 43):
            assert keys.find_key(session, wrong) is None
    assert compared == [(64, 64), (64, 64)]


def test_a_revoked_key_opens_nothing(engine: Engine) -> None:
    with transaction(engine) as session:
        mine, other = add_workspace(session), add_workspace(session)
        row, plaintext = keys.create_key(session, mine, "a")
        kept, _ = keys.create_key(session, mine, "b")
        with pytest.raises(NotFound):
            keys.revoke_key(session, other, row.id)
        keys.revoke_key(session, mine, row.id)
        with pytest.raises(NotFound):
            keys.revoke_key(session, mine, row.id)
    with reading(engine) as session:
        assert keys.find_key(session, plaintext) is None
        assert [k.id for k in keys.list_keys(session, mine)] == [kept.id]


def test_an_embedded_installation_keeps_its_first_key_in_a_private_file(engine: Engine, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    plaintext = keys.ensure_first_key(engine, settings)
    assert plaintext is not None
    assert keys.ensure_first_key(engine, settings) == plaintext
    assert keys.read_key_file(settings.home) == plaintext
    assert stat.S_IMODE((settings.home / "key").stat().st_mode) == 0o600
    assert [path.name for path in settings.home.iterdir()] == ["key"]
    with reading(engine) as session:
        assert keys.find_key(session, plaintext) is not None
        assert session.scalar(select(func.count()).select_from(ApiKeyRow)) == 1
        assert session.scalars(select(WorkspaceRow.name)).all() == ["default"]


def test_a_new_database_takes_the_key_of_the_file(engine: Engine, tmp_path: Path) -> None:
    plaintext = keys.new_plaintext()
    (tmp_path / "key").write_text(plaintext + "\n")
    assert keys.ensure_first_key(engine, Settings(home=tmp_path)) == plaintext
    with reading(engine) as session:
        assert keys.find_key(session, plaintext) is not None


def test_a_distributed_installation_takes_its_first_key_from_the_settings(engine: Engine, tmp_path: Path) -> None:
    plaintext = "graft_0123456789ab." + "c" * 48
    settings = Settings(home=tmp_path / "home", redis_url="redis://somewhere", bootstrap_key=plaintext)
    assert keys.ensure_first_key(engine, settings) == plaintext
    assert keys.ensure_first_key(engine, settings) == plaintext
    assert keys.ensure_first_key(engine, settings.model_copy(update={"bootstrap_key": None})) is None
    assert not (tmp_path / "home").exists()
    with pytest.raises(Invalid, match="bad_key"):
        keys.ensure_first_key(engine, settings.model_copy(update={"bootstrap_key": "secret"}))
    with pytest.raises(Invalid, match="bad_key"):  # another key under the same prefix
        keys.ensure_first_key(engine, settings.model_copy(update={"bootstrap_key": "graft_0123456789ab." + "d" * 48}))
