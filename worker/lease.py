"""The heartbeat of a claimed row: renews the lease from a thread and says when it is lost."""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from domain.errors import LeaseLost, Unavailable
from store.leases import renew
from worker.context import Context

log = logging.getLogger(__name__)

T = TypeVar("T")

GIVE_UP_SHARE = 0.8  # of the lease without one successful renewal: somebody may own the row by now
RETRY_S = 0.5


class Lease:
    """A context manager around the work on one row. `lost` is set once the row belongs to somebody else.

    Judged by this machine's monotonic clock when the database cannot be asked; never by its wall clock.
    """

    def __init__(self, context: Context, row: type[Any], row_id: str, fence: int) -> None:
        self.row, self.row_id, self.fence = row, row_id, fence
        self.lost = threading.Event()
        self._context = context
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{row_id}", daemon=True)

    def check(self) -> None:
        if self.lost.is_set():
            raise LeaseLost("lease_lost", f"{self.row_id} is no longer ours", row_id=self.row_id, fence=self.fence)

    def insist(self, write: Callable[[], T]) -> T:
        """Do a write again while a server is away, for one lease at most: what was trained outlives a restart of it."""
        since = time.monotonic()
        while True:
            try:
                return write()
            except Unavailable as error:
                context = self._context
                if context.stopping.is_set() or time.monotonic() - since > context.settings.lease_s:
                    raise
                log.warning("%s: %s", self.row_id, error)
                self.check()
                context.stopping.wait(RETRY_S)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        settings = self._context.settings
        renewed = time.monotonic()
        while not self._done.wait(settings.heartbeat_s):
            try:
                with self._context.transaction() as session:
                    ours = renew(session, self.row, self.row_id, self.fence, settings.lease_s)
            except Exception as error:  # whatever it is, a lease that is not renewed ends
                log.warning("heartbeat of %s: %s", self.row_id, error)
                ours = time.monotonic() - renewed < GIVE_UP_SHARE * settings.lease_s
            else:
                renewed = time.monotonic()
            if not ours:
                log.warning("lost the lease on %s", self.row_id)
                self.lost.set()
                return
