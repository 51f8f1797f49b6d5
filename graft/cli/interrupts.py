"""What Ctrl-C does to a job that is being followed."""

import sys
from typing import TYPE_CHECKING

import typer

from graft.cli import INTERRUPTED

if TYPE_CHECKING:
    from graft.client import Client

_QUESTION = "\n[c]ancel and drop everything, [k]eep the best so far, or [d]etach and let it go on?"
_ANSWERS = {"c": "cancel", "k": "keep", "d": "detach"}


def on_ctrl_c(client: "Client", job_id: str, wish: str) -> None:
    """Do as `wish` says; returns only if the job is to be followed on (`keep`), else leaves with code 130."""
    from graft.errors import GraftApiError

    if wish == "ask":
        wish = _ask()
    try:
        if wish == "cancel":
            client.jobs.cancel(job_id, keep="nothing")
            typer.echo(f"{job_id} is cancelled", err=True)
        elif wish == "keep":
            client.jobs.cancel(job_id, keep="best")
            typer.echo(f"{job_id} finishes with the best trial so far", err=True)
            return
        else:
            typer.echo(
                f"{job_id} goes on by itself: the same call again follows it, `graft cancel {job_id}` ends it", err=True
            )
    except GraftApiError as problem:
        if problem.status != 409:
            raise
        typer.echo(f"{job_id}: {problem.detail}", err=True)  # it ended meanwhile, or nothing can be kept yet
        if wish == "keep":
            return
    raise typer.Exit(INTERRUPTED)


def _ask() -> str:
    """The user's choice; `detach` where nobody can be asked, or on a second Ctrl-C."""
    if not sys.stdin.isatty():
        return "detach"
    while True:
        try:
            typer.echo(f"{_QUESTION} [c/k/d] ", nl=False, err=True)
            answer = sys.stdin.readline()
        except KeyboardInterrupt:
            return "detach"
        if not answer:
            return "detach"
        if answer.strip().lower()[:1] in _ANSWERS:
            return _ANSWERS[answer.strip().lower()[:1]]
