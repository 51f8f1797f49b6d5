"""`graft serve`: one process that starts the API and the workers of an embedded service and keeps them running.

The children read the other end of a pipe on their standard input and leave when it closes, so that nothing outlives
this process, however it ends.
"""

import importlib.util
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from graft.errors import GraftError
from graft.home import Running, is_held, read_json, running, take_lock, write_json
from graft.machine import look, shares

DEFAULT_PORT = 8321
FIRST_RESTART_S = 0.5
LONGEST_RESTART_S = 30.0
HEALTHY_AFTER_S = 60.0  # a child that lived so long starts its back-off anew
GRACE_S = 30.0  # between SIGTERM and SIGKILL: time for a trial to save its resume point
API_TRIES = 4  # failures of the API before it was ever ready
_TAIL_BYTES = 2000

Say = Callable[[str], None]


def child_environment(home: Path | None = None, **more: str) -> dict[str, str]:
    """The environment in which `python -m api` means ours, wherever the user stands."""
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONSAFEPATH": "1", **more}
    if home is not None:
        environment["GRAFT_HOME"] = str(home)
    if root.name not in {"site-packages", "dist-packages"}:  # a source tree
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return environment


def command(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def require(module: str, extra: str) -> None:
    """GraftError naming the extra to install if a library of the servers is not there."""
    if importlib.util.find_spec(module) is None:
        raise GraftError(f"{module} is not installed here: pip install 'graft-automl[{extra}]'")


def migrate(environment: dict[str, str]) -> None:
    """Bring the database to this version, in a child process."""
    done = subprocess.run(command("store.migrate"), env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise GraftError(f"the database could not be brought to this version: {lines[-1]}")


def free_port(host: str, wanted: int | None) -> int:
    """`wanted`, refused if it is taken; the default port, or any free one, if None."""
    if wanted is not None and not 0 <= wanted <= 65535:
        raise GraftError(f"there is no port {wanted}: choose one from 1 to 65535, or 0 for any free one")
    for port in (DEFAULT_PORT, 0) if wanted is None else (wanted,):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((host, port))
                return int(probe.getsockname()[1])
    if wanted in (None, 0):
        raise GraftError(f"no port of {host} can be listened on: is it an address of this machine?")
    raise GraftError(f"port {wanted} of {host} is taken: choose another with --port, or 0 for any free one")


def local_url(host: str, port: int) -> str:
    """How a client on this machine reaches a service that listens on `host`."""
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reach}]:{port}" if ":" in reach else f"http://{reach}:{port}"


def wait_s(failures: int) -> float:
    """The pause before the restart that follows so many failures in a row."""
    return min(LONGEST_RESTART_S, FIRST_RESTART_S * 2.0 ** min(16, failures - 1))


@dataclass
class Child:
    """One supervised process and its history."""

    name: str
    argv: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    restart_at: float | None = None

    def start(self, ended: Callable[["Child"], None]) -> None:
        """Start it in a session of its own: a Ctrl-C in the terminal reaches the supervisor alone."""
        self.process = subprocess.Popen(self.argv, env=self.environment, stdin=subprocess.PIPE, start_new_session=True)
        self.started, self.restart_at = time.monotonic(), None
        threading.Thread(target=self._await, args=(self.process, ended), daemon=True).start()

    def _await(self, process: subprocess.Popen[bytes], ended: Callable[["Child"], None]) -> None:
        process.wait()
        if process.stdin:
            process.stdin.close()
        ended(self)

    def failed(self) -> float:
        """Note an unwanted end; the pause before the next start."""
        lived_s = time.monotonic() - self.started
        self.failures = 1 if lived_s > HEALTHY_AFTER_S else self.failures + 1
        pause_s = wait_s(self.failures)
        self.restart_at = time.monotonic() + pause_s
        return pause_s

    def stop(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    def finish(self, until: float) -> None:
        """Wait for it until then; after that it and what it started are killed."""
        process = self.process
        if process is None:
            return
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass
class Supervisor:
    """Keeps children running until a signal. Everything that happens arrives through one queue."""

    children: list[Child]
    url: str
    home: Path
    say: Say
    ready: bool = False
    stopping: bool = False
    happened: "queue.SimpleQueue[Child | int | str]" = field(default_factory=queue.SimpleQueue)

    def run(self) -> None:
        """Until SIGINT, SIGTERM or SIGHUP. GraftError if the API never becomes ready."""
        try:
            for child in self.children:
                child.start(self.happened.put)
            threading.Thread(target=self._watch_ready, daemon=True).start()
            while not self.stopping:
                self._step()
        finally:
            self.stopping = True
            for child in self.children:
                child.stop(signal.SIGTERM)
            until = time.monotonic() + GRACE_S
            for child in self.children:
                child.finish(until)

    def _step(self) -> None:
        """Wait for the next thing to happen, and act on it."""
        due = min((c.restart_at for c in self.children if c.restart_at is not None), default=None)
        try:
            what = self.happened.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            for child in self.children:
                if child.restart_at is not None and child.restart_at <= time.monotonic():
                    child.start(self.happened.put)
            return
        if isinstance(what, Child):
            self._restart_later(what)
        elif isinstance(what, int):
            self.say(f"{signal.Signals(what).name}: stopping")
            self.stopping = True
        elif what == "ready":
            self.ready = True
            write_json(self.home / "service.json", {"url": self.url, "pid": os.getpid()})
            self.say(f"ready at {self.url}, home {self.home}")

    def _restart_later(self, child: Child) -> None:
        code = child.process.returncode if child.process else None
        pause_s = child.failed()
        if child.name == "api" and not self.ready and child.failures >= API_TRIES:
            raise GraftError(f"the API ended with code {code} before it was ready: its messages stand above")
        self.say(f"{child.name} ended with code {code}; starting it again in {pause_s:g} s")

    def _watch_ready(self) -> None:
        while not self.stopping:
            if answers(f"{self.url}/readyz"):
                self.happened.put("ready")
                return
            time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether a GET of `url` succeeds."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def signals(put: Callable[[int], None]) -> Iterator[None]:
    """The stopping signals go to `put` while the block runs."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(number, lambda n, _: put(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def serve(
    home: Path, host: str, port: int | None, *, n_workers: int | None, say: Say, watch_parent: bool = False
) -> None:
    """Run the embedded service in the foreground until a signal, or until standard input ends. Without a number there
    are as many workers as the machine bears."""
    require("fastapi", "server")
    if n_workers != 0:
        require("torch", "worker")
    lock = take_lock(home)
    if lock is None:
        known = running(home)
        where = f"at {known.url}" if known else "and is starting"
        raise GraftError(f"a service of {home} runs already {where}: `graft stop` ends it, --home takes another folder")
    (home / "service.json").unlink(missing_ok=True)
    try:
        port = free_port(host, port)
        environment = child_environment(home, GRAFT_HOST=host, GRAFT_PORT=str(port))
        migrate(environment)
        children = [Child("api", command("api", "--watch-parent"), environment)]
        each = [] if n_workers == 0 else shares(look(environment), environment, n_workers)
        for number, own in enumerate(each):  # one sees to everything but trials as well
            argv = command("worker", "--queue", "trials" if number else "control,trials", "--watch-parent")
            children.append(Child(f"worker {number + 1}" if number else "worker", argv, environment | own))
        supervisor = Supervisor(children, local_url(host, port), home, say)
        if watch_parent:
            threading.Thread(target=_watch_parent, args=(supervisor.happened.put,), daemon=True).start()
        with signals(supervisor.happened.put):
            supervisor.run()
    finally:
        (home / "service.json").unlink(missing_ok=True)
        lock.close()


def _watch_parent(put: Callable[[int], None]) -> None:
    """The parent holds the other end of standard input; when it dies, however it dies, this ends."""
    while os.read(0, 4096):
        pass
    put(signal.SIGTERM)


def start_background(home: Path, *, timeout_s: float = 90.0) -> Running:
    """The service of this home, started as a process that outlives this one if none runs yet."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = home / "serve.log"
    process: subprocess.Popen[bytes] | None = None
    if not is_held(home):
        with log.open("ab") as file:
            process = _spawn(home, file)
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        service = running(home)
        if service:
            return service
        if process and process.poll() is not None and not is_held(home):
            raise GraftError(f"the service did not start: {_tail(log)} (all of it: {log})")
        time.sleep(0.05)
    raise GraftError(f"the service was not ready within {timeout_s:g} s: look into {log}")


def _spawn(home: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("graft", "serve", "--home", str(home)),
        env=child_environment(home),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=home,  # not the user's folder, which may be a stick that wants to be pulled
        start_new_session=True,
    )


def stop(home: Path, *, timeout_s: float = GRACE_S + 15.0) -> bool:
    """End the service of this home; False if none runs. The lock tells that its pid is not somebody else's by now."""
    facts = read_json(home / "service.json")
    if not is_held(home):
        (home / "service.json").unlink(missing_ok=True)
        return False
    if not isinstance(facts, dict) or not _is_ours(int(facts.get("pid", 0))):
        raise GraftError(f"the service of {home} is just starting or ending: try again in a moment")
    os.kill(int(facts["pid"]), signal.SIGTERM)
    ends = time.monotonic() + timeout_s
    while is_held(home):
        if time.monotonic() > ends:
            raise GraftError(f"the service (process {facts['pid']}) does not end: look into {home / 'serve.log'}")
        time.sleep(0.05)
    return True


def _is_ours(pid: int) -> bool:
    """Whether the process is a `graft serve`; where the system does not tell, the lock has to do."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return pid > 1 and not Path("/proc/self").exists()
    return b"graft" in line and b"serve" in line


def _tail(log: Path) -> str:
    lines = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it left no message"
