"""The worker of an embedded installation."""

import threading

from tests.unit.worker.conftest import Open
from worker.loop import run


def test_what_was_rung_for_before_it_listened_is_taken_up_at_once(open_workshop: Open) -> None:
    """No sweep has to come first: the ring of an upload that was quicker than the worker's start is lost."""
    workshop = open_workshop(sweep_s=3600.0)
    workshop.job()
    worker = threading.Thread(target=run, args=(workshop.context, ["control"]))
    worker.start()
    heard: list[str] = []
    while "run_lot" not in heard:
        rings = workshop.listener.wait(60.0)
        assert rings, f"nothing more after {heard}"
        heard += [handler for handler, _ in rings]
    workshop.context.stopping.set()
    worker.join()
