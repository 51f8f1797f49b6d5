"""The Celery application of the distributed form: `celery -A worker.app worker -Q trials`.

A message is a doorbell: it names a handler and a row, and is acknowledged on arrival; losing it does no harm.
Under the solo pool a handler runs in the worker's own process; under prefork in a child of it. Either way the context
is opened where the handlers run.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from celery import Celery, signals

from store.queue import HANDLERS as QUEUE_OF
from store.queue import QUEUES, celery_app, task_name
from store.settings import load
from worker.context import Context, greeting, open_context
from worker.crew import ChildDied
from worker.handlers import HANDLERS, handle
from worker.pulse import Pulse

log = logging.getLogger(__name__)
settings = load()
app: Celery = celery_app(settings)
_contexts: dict[int, Context] = {}  # by process: connections do not survive a fork
_pulse: list[Pulse] = []


def context() -> Context:
    if os.getpid() not in _contexts:
        _contexts[os.getpid()] = open_context(settings)
    return _contexts[os.getpid()]


def _handler(name: str) -> Callable[[str], None]:
    def run(row_id: str) -> None:
        handle(context(), name, row_id)

    return run


for _name in HANDLERS:
    app.task(_handler(_name), name=task_name(_name), ignore_result=True)


def _ready(sender: Any, **_: Any) -> None:
    listened = {q.name for q in sender.task_consumer.queues} if sender.task_consumer else set(QUEUES)
    queues = sorted(listened & set(QUEUES))
    here = context()
    if "trials" in queues:
        try:
            here.crew.start()
        except ChildDied as died:  # each trial it took would fail
            log.critical("this worker cannot train: %s", died.reason)
            raise SystemExit(1) from died
        sys.stdout.write(greeting(here, queues) + "\n")
        sys.stdout.flush()
    _pulse.append(Pulse(here, queues))
    _pulse[0].start()


def _shutting_down(**_: Any) -> None:
    context().stopping.set()  # trials save a resume point at the next step and go back to the queue


def _process_down(**_: Any) -> None:
    context().stopping.set()
    context().crew.stop()


def _down(**_: Any) -> None:
    for pulse in _pulse:
        pulse.stop()
    context().crew.stop()


signals.worker_ready.connect(_ready)
signals.worker_shutting_down.connect(_shutting_down)
signals.worker_process_shutdown.connect(_process_down)
signals.worker_shutdown.connect(_down)


def serve(queues: list[str]) -> None:
    """Consume `queues` in this process, one message at a time."""
    assert set(queues) <= set(QUEUE_OF.values())
    app.worker_main([
        "worker", "--queues", ",".join(queues), "--pool", "solo", "--without-mingle", "--without-gossip",
        "--loglevel", settings.log_level, "--hostname", f"graft-{'-'.join(queues)}-{os.getpid()}@%h",
    ])  # fmt: skip
