"""Two views of a running job: a live one for terminals, lines for everything else."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from graft.answers import Event, Trial
from graft.cli.following import Picture
from graft.cli.telling import event_line
from graft.cli.wording import (
    duration,
    number,
    objective,
    ranking_lines,
    recipe_line,
    sparkline,
    too_long,
    trial_count,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

ROWS = 10
RANKING = "sources by how well their features tell the classes apart, before any training:"
_STYLE = {
    "COMPLETE": "green",
    "RUNNING": "cyan",
    "FAILED": "red",
    "PRUNED": "dim",
    "CANCELLED": "dim",
    "PAUSED": "yellow",
}


class Lines:
    """One line per thing that matters; for logs and pipes."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def event(self, event: Event, picture: Picture) -> None:
        if event.kind not in {"job.state", "job.estimate", "trial.state", "job.best", "job.log"}:
            return
        if event.kind == "trial.state" and event.body.get("state") == "WAITING":
            return
        trial = picture.trials.get(str(event.body.get("trial_id")))
        if trial and trial.anchor and "anchor" not in event.body:
            event = replace(event, body={**event.body, "anchor": trial.anchor})
        count = trial_count(picture.job.progress)
        sys.stdout.write(f"[{count}] {event_line(event)}\n")
        if event.kind == "job.estimate" and (warning := too_long(replace(picture.job, estimate=event.body))):
            sys.stdout.write(f"[{count}] {warning}\n")
        if event.kind == "job.estimate" and (lines := ranking_lines(event.body)):
            sys.stdout.writelines(f"{line}\n" for line in (RANKING, *lines))
        sys.stdout.flush()

    def show(self, _: Picture) -> None:
        return


class Screen:
    """A live picture: state, progress, the best so far with its history, the last trials, the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._news = ""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, event: Event, picture: Picture) -> None:
        if event.kind in {"job.log", "job.estimate"}:
            self._news = event_line(event)
        if event.kind == "job.estimate" and (warning := too_long(replace(picture.job, estimate=event.body))):
            self._news += f"; {warning}"
        if event.kind == "job.estimate" and (lines := ranking_lines(event.body)):
            for line in (RANKING, *lines):
                self._console.print(line, markup=False, highlight=False)

    def show(self, picture: Picture) -> None:
        self._live.update(picture_of(picture, self._news))


def picture_of(picture: Picture, news: str = "") -> "RenderableType":
    """The picture as rich draws it."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    job = picture.job
    head = Text.assemble((job.name or job.id, "bold"), f"  {job.id}  ", (job.state, _STYLE.get(job.state, "bold")))
    left = "" if picture.left_s is None else f", about {duration(picture.left_s)} left"
    times = Text(f"{duration(picture.elapsed_s)} elapsed{left}", style="dim")
    done = job.progress
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=1.0, completed=done.share, width=40),
        f"{trial_count(done)} trial{'' if trial_count(done) == '1' else 's'}",
        times,
    )
    parts: list[RenderableType] = [head, bar, _best(picture), _trials(picture)]
    if news:
        parts.append(Text(news, style="dim"))
    parts.append(Text("Ctrl-C: cancel, keep the best, or detach", style="dim"))
    return Group(*parts)


def _best(picture: Picture) -> "RenderableType":
    from rich.text import Text

    name, _ = objective(picture.job)
    best = picture.job.best
    if best is None:
        return Text("best so far: none yet", style="dim")
    return Text.assemble(
        f"best so far: trial {best.number}, {name} on val ", (number(best.value), "bold green"),
        f"  {recipe_line(best.recipe)}  ", (sparkline(picture.best_curve()), "green"),
    )  # fmt: skip


def _trials(picture: Picture) -> "RenderableType":
    """The last trials, running ones always among them."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("trial", "what", "state", "done", "val", "cost"):
        table.add_column(head, justify="right" if head in {"trial", "done", "val", "cost"} else "left", no_wrap=True)
    best = picture.job.best
    for trial in last_trials(picture.in_order()):
        what = (trial.anchor or "").replace("_", " ") or recipe_line(trial.recipe)
        table.add_row(
            f"{'*' if best and best.trial_id == trial.id else ''}{trial.number}",
            what,
            trial.state.lower(),
            "" if trial.share is None else f"{round(trial.share * 100)} %",
            number(trial.value),
            duration(trial.cost_s),
            style=_STYLE.get(trial.state),
        )
    return table


def last_trials(trials: list[Trial], rows: int = ROWS) -> list[Trial]:
    """At most `rows`: those at work first, then the newest of the others; in order of number."""
    working = [t for t in trials if t.state == "RUNNING"][-rows:]
    others = [t for t in trials if t.state not in {"RUNNING", "WAITING"}]
    kept = working + others[len(others) - min(len(others), rows - len(working)) :]
    return sorted(kept, key=lambda t: t.number)


def view_for_terminal() -> "Screen | Lines":
    """The live view where somebody looks at a terminal, lines elsewhere."""
    return Screen() if sys.stdout.isatty() else Lines()
