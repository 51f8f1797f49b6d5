import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from graft.errors import NoService
from graft.home import find, home_folder, is_held, running, take_lock, write_json
from graft.serving import child_environment


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def leave_service(home: Path, url: str = "http://127.0.0.1:9999") -> None:
    write_json(home / "service.json", {"url": url, "pid": os.getpid()})
    (home / "key").write_text("graft_local.key\n")


def test_arguments_come_before_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_URL", "https://far.example/")
    monkeypatch.setenv("GRAFT_API_KEY", "graft_far.key")
    found = find(home=home)
    assert (found.url, found.key) == ("https://far.example", "graft_far.key")
    found = find("http://near.example", "graft_near.key", home)
    assert (found.url, found.key) == ("http://near.example", "graft_near.key")


def test_the_embedded_service_is_found_while_it_lives(home: Path) -> None:
    lock = take_lock(home)
    assert lock is not None
    leave_service(home)
    with lock:
        assert is_held(home)
        found = find(home=home)
        assert (found.url, found.key) == ("http://127.0.0.1:9999", "graft_local.key")
    assert running(home) is None  # killed: the file stays, the lock does not
    with pytest.raises(NoService, match="graft serve"):
        find(home=home)


def test_the_embedded_key_goes_to_the_embedded_service_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with take_lock(home) or pytest.fail("held"):
        leave_service(home)
        assert find("http://127.0.0.1:9999/", home=home).key == "graft_local.key"
        for elsewhere in ("http://127.0.0.1:9998", "https://127.0.0.1:9999", "http://127.0.0.1.example:9999"):
            monkeypatch.setenv("GRAFT_URL", elsewhere)
            with pytest.raises(NoService, match="GRAFT_API_KEY"):
                find(home=home)


def test_the_lock_ends_with_its_process(home: Path) -> None:
    code = "from pathlib import Path; from graft.home import take_lock\n"
    code += f"lock = take_lock(Path({str(home)!r})); print('held', flush=True); input()"
    argv, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(argv, env=child_environment(), stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_held(home)
        assert take_lock(home) is None
        holder.kill()
        holder.wait()
        assert not is_held(home)


def test_files_are_replaced_whole_and_private(home: Path) -> None:
    write_json(home / "x.json", {"a": 1})
    write_json(home / "x.json", {"b": 2})
    assert json.loads((home / "x.json").read_text()) == {"b": 2}
    assert stat.S_IMODE((home / "x.json").stat().st_mode) == 0o600
    assert [p.name for p in home.iterdir()] == ["x.json"]


def test_the_home_is_the_argument_the_variable_or_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "v"))
    assert home_folder(tmp_path / "a") == tmp_path / "a"
    assert home_folder() == tmp_path / "v"
    monkeypatch.delenv("GRAFT_HOME")
    assert home_folder() == Path.home() / ".graft"
