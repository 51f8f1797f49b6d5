"""The doorbell: tells a handler that a row wants it. Two adapters, Celery over Redis and a local datagram socket.

A ring may be lost or doubled; the row decides, and the sweep rings again. So a bell that fails is logged, never raised.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import select
import socket
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from domain.errors import Invalid
from domain.ports import Doorbell
from store.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

# handler -> queue. `control` handlers never touch a network; `trials` handlers may take hours.
HANDLERS = {
    "prepare_dataset": "control", "advance": "control",
    "probe_job": "trials", "run_lot": "trials", "finish_job": "trials",
}  # fmt: skip
QUEUES = tuple(sorted(set(HANDLERS.values())))
# A request that rings does not wait for a broker: one more try for a connection that was cut, and no pause before it.
_AT_ONCE: dict[str, int] = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
_MAX_SOCKET_PATH = 100  # the kernel's limit is 108 bytes, some systems' 104


def open_doorbell(settings: Settings) -> Doorbell:
    """The doorbell of these settings."""
    return LocalDoorbell(settings.home) if settings.redis_url is None else CeleryDoorbell(settings)


def task_name(handler: str) -> str:
    """The name under which a handler is known to Celery."""
    _queue(handler)
    return f"graft.{handler}"


def celery_app(settings: Settings) -> "Celery":
    """The Celery application, without tasks: the worker registers its handlers, everybody else sends by name."""
    from celery import Celery  # here, since an embedded installation never loads it

    if settings.redis_url is None:
        raise Invalid("bad_settings", "GRAFT_REDIS_URL is needed to run on Celery; without it the local doorbell rings")
    app = Celery("graft", broker=settings.redis_url, set_as_current=False)
    app.conf.update(
        task_serializer="json", accept_content=["json"], result_backend=None, task_ignore_result=True,
        task_acks_late=False, worker_prefetch_multiplier=1, worker_disable_prefetch=True,
        task_queues={name: {} for name in QUEUES}, task_default_queue="control", task_create_missing_queues=False,
        task_routes={task_name(handler): {"queue": queue} for handler, queue in HANDLERS.items()},
        broker_connection_retry_on_startup=True, broker_connection_max_retries=None, broker_connection_timeout=5,
        broker_transport_options={
            "socket_keepalive": True, "socket_timeout": 30, "socket_connect_timeout": 5, "health_check_interval": 25,
            "ack_emulation": False,
        },
        # The worker waits for its broker in one place only. Remote control listens on a connection of its own, and when
        # a broker was away for a moment, kombu 5.7 can wait there for an answer that never comes, and hear no ring.
        # Acknowledging is one more question to the broker, for a ring that may be lost.
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False, worker_send_task_events=False, task_send_sent_event=False,
        enable_utc=True,
    )  # fmt: skip
    return app


class CeleryDoorbell:
    """Sends `graft.<handler>` with the row's id to the handler's queue."""

    def __init__(self, settings: Settings) -> None:
        self._app = celery_app(settings)
        self._app.conf.broker_transport_options |= {"socket_timeout": 5} | _AT_ONCE
        self._silent_until = 0.0

    def wake(self, handler: str, row_id: str) -> None:
        queue = _queue(handler)
        if time.monotonic() < self._silent_until:
            return  # the broker was away just now; requests need not wait for it one by one
        try:
            self._app.send_task(task_name(handler), args=[row_id], queue=queue, retry=False, ignore_result=True)
        except Exception as error:  # whatever the broker's client raises: the row is the outbox
            self._silent_until = time.monotonic() + 2.0
            log.warning("could not ring %s(%s): %s", handler, row_id, type(error).__name__)

    def check(self) -> bool:
        """Whether the broker answers."""
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(**_AT_ONCE)
        except Exception:
            return False
        return True


class LocalDoorbell:
    """One datagram to every listener of this installation; nobody listening is no error."""

    def __init__(self, home: Path) -> None:
        self._folder = doorbell_folder(home)

    def wake(self, handler: str, row_id: str) -> None:
        _queue(handler)
        message = json.dumps([handler, row_id]).encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
            bell.setblocking(False)
            for listener in sorted(self._folder.glob("*.sock")):
                try:
                    bell.sendto(message, str(listener))
                except ConnectionRefusedError:
                    listener.unlink(missing_ok=True)  # its process has died without a word
                except FileNotFoundError:
                    continue
                except OSError as error:
                    # A full queue belongs to a listener that is busy or about to wake anyway.
                    if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                        log.warning("could not ring %s(%s): %s", handler, row_id, error)

    def check(self) -> bool:
        return True


class LocalListener:
    """One worker's end of the local doorbell."""

    def __init__(self, home: Path, queues: Collection[str] = QUEUES) -> None:
        self._handlers = {handler for handler, queue in HANDLERS.items() if queue in queues}
        folder = doorbell_folder(home)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = folder / f"{os.getpid()}-{secrets.token_hex(3)}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(self.path))
        self.path.chmod(0o600)

    def fileno(self) -> int:
        """To wait for the bell among other things."""
        return self._socket.fileno()

    def wait(self, timeout_s: float) -> list[tuple[str, str]]:
        """(handler, id) of every ring so far, each once, in order; waits for the first at most `timeout_s`."""
        select.select([self._socket], [], [], timeout_s)
        rings: dict[tuple[str, str], None] = {}
        with contextlib.suppress(BlockingIOError):
            while True:
                ring = _parse(self._socket.recv(4096))
                if ring is not None and ring[0] in self._handlers:
                    rings[ring] = None
        return list(rings)

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> "LocalListener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listen_local(settings: Settings, queues: Collection[str] = QUEUES) -> LocalListener:
    """Listen to the local doorbell of these settings, for the handlers of `queues`."""
    return LocalListener(settings.home, queues)


def doorbell_folder(home: Path) -> Path:
    """`home/doorbell`, or a short stand-in for it where the path would be too long for a socket."""
    folder = home.absolute() / "doorbell"
    if len(os.fsencode(folder)) + 25 <= _MAX_SOCKET_PATH:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"graft-{os.getuid()}-{digest}"


def _parse(message: bytes) -> tuple[str, str] | None:
    try:
        ring = json.loads(message)
    except (ValueError, RecursionError):
        return None
    if isinstance(ring, list) and len(ring) == 2 and all(isinstance(part, str) for part in ring):
        return ring[0], ring[1]
    return None


def _queue(handler: str) -> str:
    if handler not in HANDLERS:
        raise Invalid("unknown_handler", f"there is no handler {handler!r}; there are {', '.join(HANDLERS)}")
    return HANDLERS[handler]
