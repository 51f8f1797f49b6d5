"""The real service as processes of this machine, and what /proc says of them. Linux only."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from store.migrate import migrate

ROOT = Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
KEY = "graft_0123456789ab." + "5eed" * 12


@dataclass(frozen=True)
class Process:
    """A running process, read through /proc."""

    pid: int

    def cpu_s(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_bytes(self) -> int:
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """The largest resident set since the process began or since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", "ascii")

    def maps(self, name: str) -> bool:
        """Does it hold a shared library whose path contains `name`?"""
        return name in Path(f"/proc/{self.pid}/maps").read_text("utf-8", errors="replace")

    def _status(self, field: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text("ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise LookupError(field)


@dataclass(frozen=True)
class Service:
    """An API that answers."""

    url: str
    home: Path
    env: Mapping[str, str]
    process: Process
    start_s: float  # from the start of the process to its first answer

    def client(self, timeout_s: float = 30.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=timeout_s)

    @property
    def key(self) -> str:
        made = self.home / "key"
        return made.read_text("ascii").strip() if made.exists() else KEY


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(module: list[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m <module…>` with the settings of `env` alone, in its own group; ended at the end, however it ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    with log.open("ab") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env={**kept, "OMP_NUM_THREADS": "1", **env},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextmanager
def api(home: Path, env: Mapping[str, str] | None = None) -> Iterator[Service]:
    """The API on a free port of loopback, answering; `env` adds settings, such as a database."""
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = {"GRAFT_HOME": str(home), "GRAFT_PORT": str(port), "GRAFT_LOG_LEVEL": "WARNING", **(env or {})}
    if "GRAFT_DATABASE_URL" in settings:
        settings["GRAFT_BOOTSTRAP_KEY"] = KEY
    migrate(settings.get("GRAFT_DATABASE_URL", f"sqlite:///{home / 'graft.db'}"))
    url = f"http://127.0.0.1:{port}"
    log = home / "api.log"
    began = time.perf_counter()
    with running(["api"], settings, log) as child:
        start_s = _first_answer(f"{url}/healthz", child, log, began)
        yield Service(url=url, home=home, env=settings, process=Process(child.pid), start_s=start_s)


def _first_answer(url: str, child: subprocess.Popen[bytes], log: Path, began: float) -> float:
    with httpx.Client(timeout=2.0) as client:
        while time.perf_counter() - began < 60:
            if child.poll() is not None:
                raise RuntimeError(f"the API ended with {child.returncode}:\n{log.read_text('utf-8')[-2000:]}")
            try:
                if client.get(url).status_code == 200:
                    return time.perf_counter() - began
            except httpx.TransportError:
                time.sleep(0.005)
    raise TimeoutError(f"no answer from {url} in 60 s:\n{log.read_text('utf-8')[-2000:]}")
