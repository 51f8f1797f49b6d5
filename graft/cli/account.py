"""The honest account of a finished job: how good it is on unseen images, and what the search was worth."""

from graft.answers import Job, JobResult
from graft.cli.wording import duration, interval, number, objective


def account(job: Job) -> list[str]:
    """Lines of plain text."""
    result = job.result
    if result is None:
        return [f"{job.id} is {job.state} and has no result."]
    done = job.progress
    level = round(result.test_accuracy.level * 100)
    name, more_is_better = objective(job)
    lines = [
        f"Test accuracy {interval(result.test_accuracy)} ({level} % interval) on {result.n_test} images that the search"
        " never saw.",
        *_table(result),
        "",
        result.verdict,
        f"Trial {result.best_number} was best of {done.trials_done} by {name} on val: {number(result.val)}. "
        f"It took {duration(job.elapsed_s)}, {duration(job.cost_s)} of it training.",
    ]
    if done.by_state and done.trials_done - done.by_state.get("FAILED", 0) <= len(result.anchors):
        lines.append("No trial of the search's own was carried through: only the fixed recipes above were compared.")
    if result.selection_bias is not None:
        side = "above" if more_is_better else "below"
        lines.append(f"Val minus test, in {name}: {result.selection_bias:+.4f}; {side} zero, val flattered the winner.")
    if result.n_test_looks > 1:
        lines.append(
            f"This test split has now been looked at {result.n_test_looks} times; each look wears it out a little."
        )
    if job.stopped_by and job.stopped_by != "budget":
        lines.append(f"The search was stopped by: {job.stopped_by}.")
    return lines


def _table(result: JobResult) -> list[str]:
    """The winner and each anchor, with the lift over it."""
    if not result.anchors:
        return []
    rows = [("", "test accuracy", "lift of the winner over it"), ("searched", interval(result.test_accuracy), "")]
    rows += [
        (anchor.name.replace("_", " "), interval(anchor.test_accuracy), interval(anchor.lift, signed=True))
        for anchor in result.anchors
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["", *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
