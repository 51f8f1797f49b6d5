"""What a worker does beside its handlers: says that it is alive, and takes its turn at the sweep."""

import logging
import threading
from collections.abc import Sequence

from domain.errors import GraftError
from store.workers import gone, seen
from worker.context import Context
from worker.sweep import sweep

log = logging.getLogger(__name__)


class Pulse:
    """A thread, for as long as the worker lives."""

    def __init__(self, context: Context, queues: Sequence[str]) -> None:
        self._context = context
        self._queues = list(queues)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._say()
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        try:
            with self._context.transaction() as session:
                gone(session, self._context.worker_id)
        except GraftError as error:
            log.info("no goodbye: %s", error)

    def _run(self) -> None:
        settings = self._context.settings
        quiet_s = 0.0
        while not self._done.wait(settings.sweep_s):
            try:
                quiet_s += settings.sweep_s
                if quiet_s >= settings.heartbeat_s:
                    self._say()
                    quiet_s = 0.0
                sweep(self._context)
            except GraftError as error:
                log.warning("sweep: %s", error)
            except Exception:
                log.exception("the sweep broke")

    def _say(self) -> None:
        with self._context.transaction() as session:
            seen(session, self._context.worker_id, self._queues, dict(self._context.crew.facts))
