"""`python -m worker --queue trials`: one worker process. One per GPU; on CPUs one per core."""

import argparse
import logging
import os
import signal
import sys
import threading

from domain.errors import GraftError
from store.queue import QUEUES
from store.settings import Settings, load
from worker.context import open_context
from worker.crew import ChildDied
from worker.loop import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker", description=__doc__)
    parser.add_argument("--queue", default=",".join(QUEUES), help=f"comma-separated, of {', '.join(QUEUES)}")
    parser.add_argument("--watch-parent", action="store_true", help="stop when standard input ends")
    arguments = parser.parse_args()
    queues = arguments.queue.split(",")
    if not set(queues) <= set(QUEUES):
        parser.error(f"unknown queue in {arguments.queue!r}; there are {', '.join(QUEUES)}")
    try:
        settings = load()
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        if settings.redis_url is None:
            serve_local(settings, queues, watch_parent=arguments.watch_parent)
        else:
            from worker.app import serve

            serve(queues)
    except GraftError as error:
        print(f"graft worker: {error.detail}", file=sys.stderr)
        return 2
    except ChildDied as died:
        print(f"graft worker: the trial process did not start: {died.reason}", file=sys.stderr)
        return 2
    return 0


def serve_local(settings: Settings, queues: list[str], *, watch_parent: bool) -> None:
    context = open_context(settings)

    def stop(*_: object) -> None:
        context.stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    if watch_parent:
        threading.Thread(target=_watch, args=(stop,), daemon=True).start()
    run(context, queues)


def _watch(stop: object) -> None:
    """The parent holds the other end of standard input; when it dies, however it dies, this ends."""
    while os.read(0, 4096):
        pass
    assert callable(stop)
    stop()


if __name__ == "__main__":
    sys.exit(main())
