"""`graft jobs`, `status`, `logs`, `download`, `pause`, `resume`, `cancel`, `extend`."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from graft.cli.connection import connect, print_json, print_table

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job (job_…).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, as RUNNING.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the jobs of the workspace."""
    from graft.cli.wording import number, trial_count

    with connect() as client:
        jobs = list(islice(client.jobs.list(state=state.upper() if state else None), limit))
    if as_json:
        print_json(jobs)
        return
    print_table(
        ("JOB", "NAME", "STATE", "TRIALS", "BEST ON VAL", "CREATED"),
        [
            (
                job.id,
                job.name,
                job.state,
                trial_count(job.progress),
                number(job.best.value if job.best else None),
                (job.created_at or "")[:19].replace("T", " "),
            )
            for job in jobs
        ],
    )


def status(job_id: JobId, as_json: AsJson = False) -> None:
    """Show where a job stands, and its result when it has one."""
    from graft.cli.account import account
    from graft.cli.wording import (
        decisions,
        duration,
        error_text,
        estimate_line,
        number,
        objective,
        ranking_lines,
        recipe_line,
    )

    with connect() as client:
        job = client.jobs.get(job_id)
    if as_json:
        print_json(job)
        return
    done = job.progress
    counts = ", ".join(f"{n} {state}" for state, n in sorted(done.by_state.items()) if n)
    typer.echo(f"{job.id}  {job.name}  {job.state}")
    total = f" of {done.trials_total}" if done.trials_total else ""
    typer.echo(f"trials   {done.trials_done}{total}{f' ({counts})' if counts else ''}")
    left = "" if job.finished or job.left_s is None else f", about {duration(job.left_s)} left"
    typer.echo(f"time     {duration(job.elapsed_s)}, {duration(job.cost_s)} of training{left}")
    if job.best:
        name, _ = objective(job)
        typer.echo(f"best     trial {job.best.number}: {name} {number(job.best.value)}  {recipe_line(job.best.recipe)}")
    if job.estimate:
        typer.echo(f"estimate {estimate_line(job.estimate)}")
    for line in ranking_lines(job.estimate or {}):
        typer.echo(f"source   {line}")
    for line in decisions(job.estimate or {}):
        typer.echo(f"first    {line}")
    if job.error:
        typer.echo(f"error    {error_text(job.error)}")
    if job.result:
        typer.echo("")
        for line in account(job):
            typer.echo(line)


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job has finished.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events after this number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Print the events of a job."""
    import json
    from dataclasses import asdict

    from graft.cli.telling import event_line

    with connect() as client:
        events = client.jobs.events(job_id, after) if follow else client.jobs.past_events(job_id, after)
        for event in events:
            if as_json:
                typer.echo(json.dumps(asdict(event), ensure_ascii=False))
            else:
                typer.echo(f"{event.seq:6d}  {(event.at or '')[:19].replace('T', ' '):19s}  {event_line(event)}")


def download(
    job_id: JobId,
    out: Annotated[Path | None, typer.Option(help="Folder for the unpacked bundle, or a name ending in .zip.")] = None,
) -> None:
    """Fetch the bundle of a finished job."""
    from graft.cli.bundle import fetch_bundle

    with connect() as client:
        place, names = fetch_bundle(client, job_id, out or Path(job_id))
    typer.echo(f"{place}: {', '.join(sorted(names)) if names else 'one archive'}")


def pause(job_id: JobId) -> None:
    """Let running trials save a resume point, and stop."""
    with connect() as client:
        _say(client.jobs.pause(job_id).state, job_id)


def resume(job_id: JobId) -> None:
    """Go on with a paused job."""
    with connect() as client:
        _say(client.jobs.resume(job_id).state, job_id)


def cancel(
    job_id: JobId,
    keep: Annotated[
        Literal["best", "nothing"], typer.Option(help="Finish with the best trial so far, or drop everything.")
    ] = "best",
) -> None:
    """Stop a job."""
    with connect() as client:
        _say(client.jobs.cancel(job_id, keep=keep).state, job_id)


def extend(
    job_id: JobId,
    trials: Annotated[int | None, typer.Option(min=1, help="New total of trials.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="New total of minutes.")] = None,
    device_minutes: Annotated[float | None, typer.Option(min=0.01, help="New total of minutes of training.")] = None,
    target: Annotated[float | None, typer.Option(help="A target further away.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="More searched trials without a new best.")] = None,
) -> None:
    """Raise the budget of a job that is still searching."""
    more: dict[str, Any] = {
        "trials": trials, "wall_s": None if minutes is None else minutes * 60,
        "device_s": None if device_minutes is None else device_minutes * 60, "target": target, "patience": patience,
    }  # fmt: skip
    if not any(value is not None for value in more.values()):
        raise typer.BadParameter("give --trials, --minutes, --device-minutes, --target or --patience")
    with connect() as client:
        job = client.jobs.extend(job_id, **more)
    _say(job.state, job_id)


def _say(state: str, job_id: str) -> None:
    typer.echo(f"{job_id} is {state}")
