"""The commands and their groups. Modules imported here stay light: what a command needs, it imports itself."""

import typer

from graft.cli import inventory, jobs, service, train

EPILOG = (
    "Exit codes: 0 done, 1 refused or failed, 2 wrong command line, 3 no service reachable, 130 interrupted. "
    "A service is found by GRAFT_URL and GRAFT_API_KEY, else in GRAFT_HOME (~/.graft)."
)

app = typer.Typer(
    help="Transfer learning as a service: labelled photos in, the best fine-tuned network and an honest account out.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help needs no import of rich
    pretty_exceptions_enable=False,
)

app.command()(train.train)

app.command("jobs")(jobs.list_jobs)
app.command()(jobs.status)
app.command()(jobs.logs)
app.command()(jobs.download)
app.command()(jobs.pause)
app.command()(jobs.resume)
app.command()(jobs.cancel)
app.command()(jobs.extend)

app.command("datasets")(inventory.list_datasets)
app.command()(inventory.methods)
app.command()(inventory.convert)
app.add_typer(inventory.sources, name="sources")
app.add_typer(inventory.keys, name="keys")

app.command()(service.serve)
app.command()(service.stop)
app.command()(service.worker)
app.command()(service.migrate)
