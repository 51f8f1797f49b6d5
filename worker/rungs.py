"""Trials that rest at a rung of the search and go on from there once they are among the best."""

from collections.abc import Callable

from domain.job import JobSpec
from store.trials import promote
from worker.context import Context
from worker.searches import SEARCHES, read_history


def promoted(
    context: Context, job_id: str, spec: JobSpec, most: int, ring: Callable[[str], None], *, last: bool
) -> int:  # fmt: skip
    """Up to `most` trials that may go on by now are WAITING again, the best first; how many. `ring` for their lots.
    `last` says that nothing else is left to train."""
    with SEARCHES.of(job_id, spec) as search:
        with context.reading() as session:
            history = read_history(session, job_id, search)
        search.learn(history)
        numbers = search.promotable(last=last)[:most]
    n = 0
    for number in numbers:
        with context.transaction() as session:
            lot = promote(session, job_id, number)
        if lot is not None:
            ring(lot.id)
            n += 1
    return n
