"""The handlers by name. Celery, the local doorbell and the sweep all end here."""

import logging
from collections.abc import Callable

from domain.errors import GraftError
from worker.advance import advance
from worker.context import Context
from worker.finishing import finish_job
from worker.lots import run_lot
from worker.prepare import prepare_dataset
from worker.probe import probe_job

log = logging.getLogger(__name__)

HANDLERS: dict[str, Callable[[Context, str], object]] = {
    "prepare_dataset": prepare_dataset,
    "advance": advance,
    "probe_job": probe_job,
    "run_lot": run_lot,
    "finish_job": finish_job,
}


def handle(context: Context, handler: str, row_id: str) -> None:
    """Run a handler to its end. Nothing it raises may end the worker: the row tells the sweep what is left to do."""
    try:
        HANDLERS[handler](context, row_id)
    except GraftError as error:
        log.warning("%s(%s): %s", handler, row_id, error)
    except Exception:
        log.exception("%s(%s) broke", handler, row_id)
