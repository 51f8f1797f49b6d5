import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import GraftError
from graft.home import read_json
from graft.serving import (
    LONGEST_RESTART_S,
    Child,
    Supervisor,
    child_environment,
    free_port,
    local_url,
    require,
    signals,
    stop,
    wait_s,
)

# A child as the supervisor expects it: says that it started, and leaves when its standard input ends.
FAITHFUL = """
import os, sys
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
while os.read(0, 1): pass
"""
CRASHING = """
import sys
with open(sys.argv[1], "a") as file:
    file.write("x")
sys.exit(3)
"""
DEADLINE_S = 30.0


def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that another process makes true."""
    ends = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def child(name: str, code: str, mark: Path) -> Child:
    return Child(name, [sys.executable, "-c", code, str(mark)], dict(os.environ))


def pids(mark: Path) -> list[int]:
    return [int(line) for line in mark.read_text().split()] if mark.exists() else []


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def test_a_killed_child_is_started_again_and_a_signal_ends_all(tmp_path: Path) -> None:
    mark = tmp_path / "pids"
    said: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        answering = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        answering.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        supervisor = Supervisor([child("worker", FAITHFUL, mark)], url, tmp_path, said.append)
        running = threading.Thread(target=supervisor.run)
        running.start()
        until(lambda: len(pids(mark)) == 1 and supervisor.ready)
        until(lambda: read_json(tmp_path / "service.json") == {"url": url, "pid": os.getpid()})
        os.kill(pids(mark)[0], signal.SIGKILL)
        until(lambda: len(pids(mark)) == 2)
        supervisor.happened.put(signal.SIGTERM)
        running.join(DEADLINE_S)
        assert not running.is_alive()
        server.shutdown()
        answering.join()
    assert not any(map(is_alive, pids(mark)))
    assert any("worker ended with code -9; starting it again in 0.5 s" in line for line in said)


def test_an_api_that_never_gets_ready_ends_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft.serving.FIRST_RESTART_S", 0.01)
    faithful = tmp_path / "pids"
    children = [child("api", CRASHING, tmp_path / "x"), child("worker", FAITHFUL, faithful)]
    with pytest.raises(GraftError, match="ended with code 3 before it was ready"):
        Supervisor(children, "http://127.0.0.1:9", tmp_path, lambda _: None).run()
    assert (tmp_path / "x").read_text() == "xxxx"
    assert not any(map(is_alive, pids(faithful)))


def test_children_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "pids"
    code = f"""
import sys
from pathlib import Path
from graft.serving import Child, Supervisor
child = Child("worker", [sys.executable, "-c", {FAITHFUL!r}, {str(mark)!r}], {{}})
Supervisor([child], "http://127.0.0.1:9", Path({str(tmp_path)!r}), print).run()
"""
    with subprocess.Popen([sys.executable, "-c", code], env=child_environment()) as parent:
        until(lambda: len(pids(mark)) == 1)
        (pid,) = pids(mark)
        assert is_alive(pid)
        parent.kill()
        parent.wait()
        until(lambda: not is_alive(pid))


def test_signals_arrive_in_the_queue() -> None:
    before = signal.getsignal(signal.SIGTERM)
    got: list[int] = []
    with signals(got.append):
        signal.raise_signal(signal.SIGTERM)
    assert got == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


@given(st.integers(1, 10_000))
def test_restarts_wait_longer_but_not_for_ever(failures: int) -> None:
    assert 0 < wait_s(failures) <= wait_s(failures + 1) <= LONGEST_RESTART_S


def test_a_taken_port_is_refused_if_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GraftError, match="--port"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", None) > 0


def test_where_a_client_on_this_machine_finds_the_service() -> None:
    assert local_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert local_url("::", 80) == "http://[::1]:80"
    assert local_url("127.0.0.1", 80) == "http://127.0.0.1:80"


def test_a_missing_library_names_the_extra() -> None:
    with pytest.raises(GraftError, match=r"pip install 'graft-automl\[server\]'"):
        require("a_library_that_is_not_there", "server")


def test_children_find_our_modules_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "graft").mkdir()
    (tmp_path / "graft" / "__init__.py").write_text("raise SystemExit('the wrong graft')")
    done = subprocess.run(
        [sys.executable, "-m", "graft", "stop", "--home", str(tmp_path / "home")],
        cwd=tmp_path, env=child_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"no service runs in {tmp_path / 'home'}\n")


def test_stopping_nothing_is_no_error_and_removes_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / "service.json").write_text('{"url": "http://127.0.0.1:1", "pid": 1}')
    assert stop(tmp_path) is False
    assert not (tmp_path / "service.json").exists()
