"""A bar for bytes on their way, shown in a terminal only."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from graft.archives import Told


@contextmanager
def transfer_progress(what: str) -> Iterator[Told | None]:
    """A `tell(done, total)` that moves a bar."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
