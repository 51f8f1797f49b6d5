"""The worker of an embedded installation: listens to the local doorbell, one thread per queue."""

import logging
import queue
import sys
import threading
from collections.abc import Callable, Sequence

from domain.errors import GraftError
from store.queue import HANDLERS as QUEUE_OF
from store.queue import listen_local
from worker.context import Context, greeting
from worker.handlers import handle
from worker.pulse import Pulse
from worker.sweep import ring_again

log = logging.getLogger(__name__)

Ring = tuple[str, str]


class Lane:
    """Handles the rings of one queue in order, once it has done what comes `first`. A ring that already waits is not
    queued twice."""

    def __init__(self, context: Context, name: str, first: Callable[[], None] | None = None) -> None:
        self._context, self._first = context, first
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
        if self._first is not None:
            self._first()
        while (ring := self._rings.get()) is not None:
            with self._lock:
                self._waiting.discard(ring)  # before it runs: a ring from now on may tell of something newer
            if not self._context.stopping.is_set():
                handle(self._context, *ring)


def run(context: Context, queues: Sequence[str]) -> None:
    """Until `context.stopping` is set. Work under way is brought to a resume point first. Raises ChildDied if the trial
    process does not start."""
    pulse = Pulse(context, queues)
    failed: list[Exception] = []

    def warm_up() -> None:
        """Seconds, in which the other lanes work already."""
        try:
            context.crew.start()
        except Exception as error:  # a lane would die of it without a word
            failed.append(error)
            context.stopping.set()
        else:
            sys.stdout.write(greeting(context, queues) + "\n")
            sys.stdout.flush()
            pulse.tell()

    with listen_local(context.settings, queues) as listener:
        pulse.start()
        lanes = {name: Lane(context, name, warm_up if name == "trials" else None) for name in queues}
        try:
            _catch_up(context)
            while not context.stopping.is_set():
                for handler, row_id in listener.wait(timeout_s=0.5):
                    lanes[QUEUE_OF[handler]].ring((handler, row_id))
        finally:
            context.stopping.set()
            for lane in lanes.values():
                lane.close()
            pulse.stop()
            context.crew.stop()
    if failed:
        raise failed[0]


def _catch_up(context: Context) -> None:
    """Nobody may have listened when what waits was rung for."""
    try:
        ring_again(context, whatever=True)
    except GraftError as error:  # the sweep repairs it later
        log.warning("nothing could be rung for: %s", error)
