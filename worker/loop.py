"""The worker of an embedded installation: listens to the local doorbell, one thread per queue."""

import logging
import queue
import threading
from collections.abc import Sequence

from store.queue import HANDLERS as QUEUE_OF
from store.queue import listen_local
from worker.context import Context
from worker.handlers import handle
from worker.pulse import Pulse

log = logging.getLogger(__name__)

Ring = tuple[str, str]


class Lane:
    """Handles the rings of one queue in order. A ring that already waits is not queued twice."""

    def __init__(self, context: Context, name: str) -> None:
        self._context = context
        self._rings: queue.SimpleQueue[Ring | None] = queue.SimpleQueue()
        self._waiting: set[Ring] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def ring(self, ring: Ring) -> None:
        with self._lock:
            if ring in self._waiting:
                return
            self._waiting.add(ring)
        self._rings.put(ring)

    def close(self) -> None:
        self._rings.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (ring := self._rings.get()) is not None:
            with self._lock:
                self._waiting.discard(ring)  # before it runs: a ring from now on may tell of something newer
            if not self._context.stopping.is_set():
                handle(self._context, *ring)


def run(context: Context, queues: Sequence[str]) -> None:
    """Until `context.stopping` is set. Work under way is brought to a resume point first."""
    with listen_local(context.settings, queues) as listener:
        lanes = {name: Lane(context, name) for name in queues}
        pulse = Pulse(context, queues)
        pulse.start()
        try:
            while not context.stopping.is_set():
                for handler, row_id in listener.wait(timeout_s=0.5):
                    lanes[QUEUE_OF[handler]].ring((handler, row_id))
        finally:
            context.stopping.set()
            for lane in lanes.values():
                lane.close()
            pulse.stop()
            context.crew.stop()
