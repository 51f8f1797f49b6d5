"""A real installation for a test: API and workers as processes of their own, on whichever servers the test gives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

from graft import Client
from tests.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
KEY = "graft_0123456789ab." + "5eed" * 12
# Short enough that a lost worker is noticed within a test.
QUICK = {"GRAFT_LEASE_S": "4", "GRAFT_HEARTBEAT_S": "1", "GRAFT_SWEEP_S": "0.5"}

T = TypeVar("T")


class Installation:
    """Settings, and the processes started with them. Everything started here ends here."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"GRAFT_HOME": str(home), "GRAFT_PORT": str(self.port), **QUICK, **settings}
        if "GRAFT_DATABASE_URL" in settings:
            self.settings["GRAFT_BOOTSTRAP_KEY"] = KEY
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *module: str) -> subprocess.Popen[bytes]:
        """`python -m <module…>`, in a session of its own."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("GRAFT_")}
        with (self.home / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module], cwd=ROOT, env={**env, "OMP_NUM_THREADS": "1", **self.settings},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_api(self) -> subprocess.Popen[bytes]:
        process = self.start("api")

        def answers() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"the API ended:\n{self.log()}")
            try:
                return httpx.get(f"{self.url}/healthz", timeout=2).status_code == 200
            except httpx.TransportError:
                return False

        self.until(answers)
        return process

    def start_worker(self, queues: str = "control,trials") -> subprocess.Popen[bytes]:
        return self.start("worker", "--queue", queues)

    def client(self) -> Client:
        key = self.home / "key"
        return Client(self.url, key.read_text("ascii").strip() if key.exists() else KEY)

    def log(self) -> str:
        return (self.home / "processes.log").read_text(errors="replace")[-8000:]

    def until(self, probe: Callable[[], T], *, for_s: float = 120.0) -> T:
        """Poll until `probe` says something true, and return it."""
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            if found := probe():
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {for_s} s; the processes said:\n{self.log()}")

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def installed(home: Path, **settings: str) -> Iterator[Installation]:
    installation = Installation(home, **settings)
    try:
        yield installation
    finally:
        installation.stop()


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*")
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
