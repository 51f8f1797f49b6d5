"""`graft serve`, `stop`, `worker`, `migrate`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path | None, typer.Option("--home", help="Folder of the embedded service (GRAFT_HOME, ~/.graft).")]


def serve(
    home: Home = None,
    host: Annotated[str, typer.Option(envvar="GRAFT_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(envvar="GRAFT_PORT", help="Port; 8321 if it is free, any other if not.")
    ] = None,
    api_only: Annotated[
        bool, typer.Option("--api-only", help="The API process alone: no worker, no migration, no supervision.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(envvar="GRAFT_WORKERS", min=1, max=64, help="Trials at a time; as many as cores or GPUs bear."),
    ] = None,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Everything but the workers.")] = False,
    watch_parent: Annotated[bool, typer.Option("--watch-parent", help="Stop when standard input ends.")] = False,
) -> None:
    """Run the service here: API and workers, in the foreground."""
    from graft import serving
    from graft.home import home_folder

    folder = home_folder(home)
    if api_only:
        serving.require("fastapi", "server")
        chosen = str(serving.DEFAULT_PORT if port is None else serving.free_port(host, port))
        _become("api", [], serving.child_environment(folder, GRAFT_HOST=host, GRAFT_PORT=chosen))
    serving.serve(folder, host, port, n_workers=0 if no_worker else workers, watch_parent=watch_parent, say=_say)


def _say(text: str) -> None:
    typer.echo(f"graft: {text}", err=True)


def stop(home: Home = None) -> None:
    """End the embedded service that runs in the background."""
    from graft import serving
    from graft.home import home_folder

    folder = home_folder(home)
    typer.echo("stopped" if serving.stop(folder) else f"no service runs in {folder}")


def worker(
    queue: Annotated[str, typer.Option(help="What to work on: trials, control, or both with a comma.")] = "trials",
    home: Home = None,
) -> None:
    """Run one worker here, in the foreground."""
    from graft import serving
    from graft.home import home_folder

    serving.require("sqlalchemy", "server")
    known = {"trials", "control"}
    wanted = [name.strip() for name in queue.split(",")]
    if not set(wanted) <= known:
        raise typer.BadParameter(f"{queue!r}: there are trials and control", param_hint="--queue")
    if "trials" in wanted:
        serving.require("torch", "worker")
    _become("worker", ["--queue", ",".join(wanted)], serving.child_environment(home_folder(home)))


def migrate(home: Home = None) -> None:
    """Bring the database to this version."""
    from graft import serving
    from graft.home import home_folder

    serving.require("alembic", "server")
    folder = home_folder(home)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    serving.migrate(serving.child_environment(folder))
    typer.echo("the database is at this version")


def _become(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Replace this process, so that signals go straight to the server."""
    from graft.serving import command

    argv = command(module, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], argv, environment)
