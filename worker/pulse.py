"""What a worker does beside its handlers: says that it is alive, takes its turn at the sweep, tidies its machine."""

import logging
import threading
import time
from collections.abc import Sequence

from domain.errors import GraftError
from store.workers import gone, seen
from worker.context import Context
from worker.sweep import TIDY_EVERY_S, sweep, tidy_machine

log = logging.getLogger(__name__)


class Pulse:
    """A thread, for as long as the worker lives."""

    def __init__(self, context: Context, queues: Sequence[str]) -> None:
        self._context = context
        self._queues = list(queues)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Says so before work is taken, since `advance` counts workers; where nobody listens yet, a little later."""
        self.tell()
        self._thread.start()

    def tell(self) -> None:
        """Say at once what has changed; where the database does not answer, the next heartbeat says it."""
        try:
            self._say()
        except GraftError as error:
            log.warning("no greeting: %s", error)

    def stop(self) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            with self._context.transaction() as session:
                gone(session, self._context.worker_id)
        except GraftError as error:
            log.info("no goodbye: %s", error)

    def _run(self) -> None:
        settings = self._context.settings
        said_at = tidied_at = time.monotonic()
        while not self._done.wait(settings.sweep_s):
            try:
                if time.monotonic() - said_at >= settings.heartbeat_s - settings.sweep_s / 2:
                    self._say()
                    said_at = time.monotonic()
                sweep(self._context)
                if time.monotonic() - tidied_at >= TIDY_EVERY_S:
                    tidied_at = time.monotonic()
                    tidy_machine(settings)
            except GraftError as error:
                log.warning("sweep: %s", error)
            except Exception:
                log.exception("the sweep broke")

    def _say(self) -> None:
        with self._context.transaction() as session:
            seen(session, self._context.worker_id, self._queues, dict(self._context.crew.facts))
