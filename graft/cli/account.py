"""The honest account of a finished job: how good it is on unseen images, and what the search was worth."""

from graft.answers import Job, JobResult
from graft.cli.wording import duration, interval, number, objective, quantity, stop_line


def account(job: Job) -> list[str]:
    """Lines of plain text."""
    result = job.result
    if result is None:
        return [f"{job.id} is {job.state} and has no result."]
    done = job.progress
    level = round(result.test_accuracy.level * 100)
    name, _ = objective(job)
    lines = [
        f"Test accuracy {interval(result.test_accuracy)} ({level} % interval) on {result.n_test} images that the search"
        " never saw.",
        *_table(result),
        "",
        result.verdict,
        f"{_handed_back(result)}, of {done.trials_done} trials; {name} on val: {number(result.val)}. "
        f"It took {duration(job.elapsed_s)}, {duration(job.cost_s)} of it training.",
        *(f"- {sentence}" for sentence in result.summary),
    ]
    if not result.summary:
        lines += _unsummed(job, result)
    lines += _front(result)
    if result.n_test_looks > 1:
        lines.append(
            f"This test split has now been looked at {result.n_test_looks} times; each look wears it out a little."
        )
    if (why := stop_line(job)) is not None:
        lines.append(why)
    return lines


def _unsummed(job: Job, result: JobResult) -> list[str]:
    """What the summary says otherwise; services before it gave none."""
    done, lines = job.progress, []
    name, more_is_better = objective(job)
    if done.by_state and done.trials_done - done.by_state.get("FAILED", 0) <= len(result.anchors):
        lines.append("No trial of the search's own was carried through: only the fixed recipes above were compared.")
    if result.selection_bias is not None:
        side = "above" if more_is_better else "below"
        lines.append(f"Val minus test, in {name}: {result.selection_bias:+.4f}; {side} zero, val flattered the winner.")
    return lines


def _handed_back(result: JobResult) -> str:
    """`This is trial 7`, or what it was combined of."""
    taken = [combined for combined in result.combined if combined.taken]
    if not taken:
        return f"This is trial {result.best_number}"
    numbers = ", ".join(map(str, taken[-1].numbers))
    return f"This is {'a soup' if taken[-1].kind == 'soup' else 'an ensemble'} of trials {numbers}"


def _front(result: JobResult) -> list[str]:
    """The trials that no other one beats, the one that was taken marked by a star."""
    if not result.front:
        return []
    names = list(result.front[0].values)
    rows = [("trial", *names)]
    rows += [
        (f"{'*' if point.chosen else ' '} {point.number}", *(quantity(name, point.values.get(name)) for name in names))
        for point in result.front
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names) + 1)]
    table = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return ["", "The front: no other trial is at least as good in everything and better in something.", *table, ""]


def _table(result: JobResult) -> list[str]:
    """The winner and each anchor, with the lift over it."""
    if not result.anchors:
        return []
    rows = [("", "test accuracy", "lift of the winner over it"), ("handed back", interval(result.test_accuracy), "")]
    rows += [
        (anchor.name.replace("_", " "), interval(anchor.test_accuracy), interval(anchor.lift, signed=True))
        for anchor in result.anchors
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["", *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
