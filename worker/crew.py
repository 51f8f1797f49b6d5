"""The warm trial process of a worker: torch imported, device up, caches filled; replaced when it dies.

A crash, an out-of-memory kill or a cancel ends the child alone, and its GPU memory goes with it. The child inherits no
credentials: its environment holds only what torch needs.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import get_args

from domain.lot import Precision
from store.settings import Settings
from worker.wire import Alive, Done, FromChild, Hello, Message, Refused, Wish, Wishes, receive_news, send

_PASSED_ON = {
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "HTTPS_PROXY",
    "https_proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "CC", "CXX",
}  # fmt: skip
_PREFIXES = ("CUDA_", "NVIDIA_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "TORCHINDUCTOR_", "TRITON_")
START_S = 300.0  # importing torch from a slow disk takes a while, but not this long
SILENT_S = 3600.0  # nothing that does not ask whether it should go on takes longer
OBEYS_WITHIN_S = 60.0  # after a cancel: what it is at is worth nothing any more


class ChildDied(Exception):
    """The trial process ended while it had an order; `reason` says how."""

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = "out_of_memory" if killed else "crashed"  # who kills without a word is the kernel, for memory


class Crew:
    """At most one trial process, started when first needed. One order at a time; wishes may come from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._sending = threading.Lock()
        self._ordered = False  # and not done
        self._worn = False
        self._heard_at = 0.0
        self._silent_s = SILENT_S
        self.facts: dict[str, str | int | float | bool] = {}

    def start(self) -> dict[str, str | int | float | bool]:
        """Start the process if there is none, and return what it found on this machine."""
        if self._process is not None and self._process.poll() is None:
            return self.facts
        self.stop()
        ours, theirs = socket.socketpair()
        settings = self._settings
        command = [
            sys.executable, "-m", "worker.trial_process", str(theirs.fileno()),
            "--device", settings.device, "--precision", settings.precision, "--threads", str(settings.n_threads),
            "--most-threads", str(settings.max_threads), "--paces", str(settings.cache / "paces"),
            "--weights-dir", str(settings.weights),
        ]  # fmt: skip
        if settings.device_memory_bytes is not None:
            command += ["--memory-bytes", str(settings.device_memory_bytes)]
        # NumPy's threads spin while they wait: beside a busy neighbour a solve took four minutes instead of half a one.
        environment = clean_environment() | {"OPENBLAS_NUM_THREADS": str(settings.n_threads or 1)}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        self._connection = Connection(ours.detach())
        if not self._connection.poll(START_S):
            self.stop()
            raise ChildDied(f"the trial process did not start within {START_S:.0f} s")
        hello = self._receive()
        assert isinstance(hello, Hello)
        self.facts = hello.facts
        return self.facts

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @contextmanager
    def order(
        self, message: Message, *, timeout_s: float, silent_s: float = SILENT_S
    ) -> Iterator[Iterator[FromChild | None]]:
        """Hand an order to the warm process; the block reads what comes of it: messages until the order is done, None
        whenever nothing came for `timeout_s`. Raises ChildDied, also of a process that gives no sign of life for
        `silent_s`: one that hangs is as good as dead.

        A process whose order was left before its end is stopped, so that nothing it still says is taken for the next
        one's; so is one that has met a fault of ours, or that holds memory which has leaked.
        """
        self.start()
        self._ordered = True
        self._heard_at, self._silent_s = time.monotonic(), silent_s
        try:
            self._send(message)
            yield self._news(timeout_s)
        finally:
            if self._ordered or self._worn:
                self.stop()

    def _news(self, timeout_s: float) -> Iterator[FromChild | None]:
        done = False
        while not done:
            connection = self._connection
            if connection is None:
                raise ChildDied("the trial process was stopped")
            try:
                ready = connection.poll(timeout_s)
            except OSError:
                ready = True  # let the read say what happened
            message = self._receive() if ready else None
            if message is not None:
                self._heard_at = time.monotonic()
            elif time.monotonic() - self._heard_at > self._silent_s:
                raise ChildDied(f"the trial process has said nothing for {self._silent_s:.0f} s")
            done = isinstance(message, Done | Refused)
            self._worn = isinstance(message, Done | Refused) and message.worn
            if isinstance(message, Done) or (isinstance(message, Refused) and message.code != "crashed"):
                self._ordered = False
            yield None if isinstance(message, Alive) else message

    def wish(self, trial_id: str, wish: Wish) -> None:
        """Tell what is wanted of a trial; the process has time again to obey, after a cancel not much."""
        self._heard_at = time.monotonic()
        if wish == "cancel":
            self._silent_s = min(self._silent_s, OBEYS_WITHIN_S)
        with self._sending, suppress(OSError):  # the end of the process is for the reader of its news to find
            if self._connection is not None:
                send(self._connection, Wishes(trial_id=trial_id, wish=wish))

    def stop(self) -> None:
        """End the process, its GPU memory with it."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        self._ordered = self._worn = False
        if connection is not None:
            connection.close()
        if process is not None and process.poll() is None:
            process.kill()
        if process is not None:
            process.wait()

    def _send(self, message: Message) -> None:
        with self._sending:
            try:
                if self._connection is None:
                    raise ChildDied("the trial process was stopped")
                send(self._connection, message)
            except OSError:
                raise self._died() from None

    def _receive(self) -> FromChild:
        assert self._connection is not None
        try:
            return receive_news(self._connection)
        except (EOFError, OSError):
            raise self._died() from None

    def _died(self) -> ChildDied:
        process = self._process
        code = None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=10.0)
        self.stop()
        if code is None:
            return ChildDied("the trial process fell silent")
        if code < 0:
            killed = -code == signal.SIGKILL
            return ChildDied(f"the trial process was ended by {signal.Signals(-code).name}", killed=killed)
        return ChildDied(f"the trial process exited with status {code}")


def clean_environment() -> dict[str, str]:
    """The parent's environment without a single GRAFT_, database or cloud variable."""
    return {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith(_PREFIXES)}


def precision_of(facts: dict[str, str | int | float | bool]) -> Precision:
    return next(p for p in get_args(Precision) if p == facts["precision"])


def prefetches(facts: dict[str, str | int | float | bool]) -> bool:
    """Whether a trial has a thread to spare for the next batch: its own core is busy, an accelerator's host is not."""
    return facts["device"] != "cpu" or int(facts["n_threads"]) > 1
