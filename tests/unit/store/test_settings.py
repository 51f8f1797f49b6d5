from pathlib import Path

import pytest
from pydantic import ValidationError

from domain.errors import Invalid
from store.settings import Settings, load


def test_without_settings_everything_lies_in_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load()
    assert settings.home == tmp_path / ".graft"
    assert settings.database == f"sqlite:///{tmp_path}/.graft/graft.db"
    assert settings.embedded
    assert settings.host == "127.0.0.1"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "GRAFT_HOME": "relative", "GRAFT_REDIS_URL": "redis://somewhere", "GRAFT_PORT": "80", "GRAFT_BLOB_URL": "",
        "GRAFT_ALLOWED_HOSTS": "a.example, b.example",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    settings = load()
    assert (settings.home, settings.port, settings.embedded) == (tmp_path / "relative", 80, False)
    assert settings.blob_url is None
    assert settings.allowed_hosts == ("a.example", "b.example")


def test_an_unknown_variable_is_refused_with_the_legal_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_LEASE", "3")
    with pytest.raises(Invalid, match="GRAFT_LEASE_S") as caught:
        load()
    assert caught.value.facts["unknown"] == ["GRAFT_LEASE"]


def test_the_client_and_the_tests_have_variables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRAFT_URL", "GRAFT_API_KEY", "GRAFT_HOME", "GRAFT_TEST_PG_BIN"):
        monkeypatch.setenv(name, "x")
    load()


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "http"), ("LEASE_S", "0"), ("LEASE_S", "15"), ("PRECISION", "float16")]
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"GRAFT_{name}", value)
    with pytest.raises(Invalid, match="bad_settings") as caught:
        load()
    assert name.lower() in caught.value.detail.lower()


def test_secrets_are_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_DATABASE_URL", "postgresql://graft:hush@db/graft")
    monkeypatch.setenv("GRAFT_REDIS_URL", "redis://:hush@redis")
    monkeypatch.setenv("GRAFT_BOOTSTRAP_KEY", "hush")
    assert "hush" not in repr(load())
    monkeypatch.setenv("GRAFT_N_THREADS", "hush")
    with pytest.raises(Invalid) as caught:
        load()
    assert "hush" not in str(caught.value)


def test_settings_are_frozen_and_strict() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(lease=3)  # type: ignore[call-arg]
