"""The data, source, teacher and resume point of the trial that will be next, brought to this machine while another one
trains.

What was asked ahead waits in its row for whichever worker is free first. Here it is only looked at: nothing is claimed,
and whoever claims it finds them in the cache, or fetches them as ever.
"""

import logging
import threading

from domain.catalogue import catalogue
from domain.errors import GraftError
from domain.recipe import Recipe
from domain.teaching import needs
from store.trials import trials_of_lot, waiting_lot
from worker.claims import Claimed, measured
from worker.context import Context
from worker.files import fetch_resume_point, fetch_weights, pack_folder, source_files, source_pack
from worker.teachers import finished_teacher

log = logging.getLogger(__name__)


def read_ahead(context: Context, claimed: Claimed) -> threading.Thread | None:
    """Begin, unless that is under way or the worker stops; a process that ends does not wait for it."""
    if context.stopping.is_set() or not context.reading_ahead.acquire(blocking=False):
        return None
    thread = threading.Thread(target=_read, args=(context, claimed), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read(context: Context, claimed: Claimed) -> None:
    try:
        with context.reading() as session:
            lot_id = waiting_lot(session, claimed.job_id)
            trials = [] if lot_id is None else trials_of_lot(session, lot_id)
        for trial in trials:
            recipe = Recipe.model_validate(trial.recipe)
            if trial.resume_blob is not None:
                fetch_resume_point(context, trial.resume_blob)
            source = source_files(context, claimed.spec, recipe.source)
            if "teacher" in needs(recipe, catalogue()):
                finished_teacher(context, claimed.spec)
            # One thread: what trains meanwhile is timed.
            pack_folder(context, claimed.items_blob, recipe.backbone, recipe.data.resolution, n_threads=1)
            source_pack(context, claimed.source_items_blob, recipe, measured(claimed.spec, trial), n_threads=1)
            fetch_weights(context, source)
    except (GraftError, FileNotFoundError) as error:  # whoever claims it, or just did, meets it and answers for it
        log.info("nothing was read ahead for %s: %s", claimed.job_id, error)
    except Exception:  # a fault of ours, and no reason to end a worker that trains
        log.exception("nothing was read ahead for %s", claimed.job_id)
    finally:
        context.reading_ahead.release()
