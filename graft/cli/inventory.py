"""`graft datasets`, `sources`, `methods`, `keys`, `convert`."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from graft.cli.connection import connect, print_json, print_table

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

sources = typer.Typer(help="Weights to start from.", invoke_without_command=True, rich_markup_mode=None)
keys = typer.Typer(help="API keys of the workspace.", no_args_is_help=True, rich_markup_mode=None)


def list_datasets(limit: Annotated[int, typer.Option(min=1)] = 50, as_json: AsJson = False) -> None:
    """List the datasets of the workspace."""
    from graft.cli.wording import size

    with connect() as client:
        found = list(islice(client.datasets.list(), limit))
    if as_json:
        print_json(found)
        return
    rows = []
    for dataset in found:
        facts = dataset.statistics or {}
        counts = facts.get("per_split") or {}
        split = " ".join(f"{name} {n}" for name, n in counts.items())
        rows.append(
            (dataset.id, dataset.name, dataset.state, size(dataset.size_bytes or 0), split, str(dataset.n_findings))
        )
    print_table(("DATASET", "NAME", "STATE", "SIZE", "IMAGES", "FINDINGS"), rows)


@sources.callback()
def list_sources(context: typer.Context, as_json: AsJson = False) -> None:
    """List the weights a job may start from."""
    if not context.invoked_subcommand:
        _print_sources(as_json)


@sources.command("list")
def list_sources_too(as_json: AsJson = False) -> None:
    """List the weights a job may start from; `graft sources` alone does the same."""
    _print_sources(as_json)


def _print_sources(as_json: bool) -> None:
    with connect() as client:
        found = list(client.sources.list())
    if as_json:
        print_json(found)
        return
    print_table(
        ("SOURCE", "NAME", "BACKBONE", "CLASSES", "ACCURACY", "LICENCE"),
        [
            (
                source.ref,
                source.name,
                source.backbone,
                str(source.n_classes or "-"),
                "-" if source.accuracy is None else f"{source.accuracy:.1f} %",
                source.licence or "unknown",
            )
            for source in found
        ],
    )


@sources.command("register")
def register(
    file: Annotated[Path, typer.Argument(help="Weights as .safetensors; `graft convert` makes them from .pth.")],
    backbone: Annotated[str, typer.Option(help="The network they belong to, as `graft methods` names it.")],
    name: Annotated[str | None, typer.Option(help="For people.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights; it goes into every bundle.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Text file with the classes of their head, one per line, in order.")
    ] = None,
) -> None:
    """Register your own weights for a backbone."""
    labels = None
    if classes is not None:
        if not classes.is_file():
            raise typer.BadParameter(f"{classes} does not exist", param_hint="--classes")
        labels = [line.strip() for line in classes.read_text("utf-8").splitlines() if line.strip()]
    with connect() as client:
        source = client.sources.register(file, backbone, name=name, licence=licence, classes=labels)
    typer.echo(f"{source.ref}: use it with `graft train PATH --source {source.ref}`")


def methods(as_json: AsJson = False) -> None:
    """Show what a search can vary: backbones, parts, ranges.

    The paths are those that `graft train --fix` takes.
    """
    with connect() as client:
        catalogue = client.methods()
    if as_json:
        print_json(catalogue)
        return
    for backbone in catalogue.get("backbones", []):
        typer.echo(f"backbone {backbone['name']}: {backbone.get('summary', '')}")
        if backbone.get("resolutions"):
            typer.echo(f"    data.resolution one of {', '.join(map(str, backbone['resolutions']))}")
    for part in catalogue.get("parts", []):
        typer.echo(f"{part['slot']} {part['name']}: {part.get('summary', '')}")
        if part.get("needs"):
            typer.echo(f"    needs {', '.join(part['needs'])}")
        for param, range_ in part.get("space", {}).items():
            typer.echo(f"    {part['slot']}.{part['name']}.{param} {_range(range_)}")
    for task in catalogue.get("tasks", []):
        typer.echo(f"task {task['name']}: {task.get('summary', '')}")
        for path, range_ in task.get("space", {}).items():
            typer.echo(f"    {path} {_range(range_)}")


def _range(range_: dict[str, object]) -> str:
    if range_.get("kind") == "choice":
        options = range_.get("options")
        shown = ", ".join(str(o) for o in options) if isinstance(options, list) else str(options)
        return f"one of {shown} (default {range_.get('default')})"
    scale = ", log" if range_.get("log") else ""
    return f"{range_.get('low')} to {range_.get('high')}{scale} (default {range_.get('default')})"


@keys.command("create")
def create_key(name: Annotated[str, typer.Argument(help="Who or what will use it.")]) -> None:
    """Make a key and print it, this once."""
    with connect() as client:
        typer.echo(client.keys.create(name).key)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys, without their secrets."""
    with connect() as client:
        found = list(client.keys.list())
    if as_json:
        print_json(found)
        return
    print_table(("KEY", "NAME", "PREFIX", "CREATED"), [(k.id, k.name, k.prefix, k.created_at or "") for k in found])


@keys.command("delete")
def delete_key(key_id: Annotated[str, typer.Argument(metavar="KEY")]) -> None:
    """Make a key invalid at once."""
    with connect() as client:
        client.keys.delete(key_id)
    typer.echo(f"{key_id} is gone")


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN.pth", help="A state dict saved by torch.")],
    target: Annotated[Path, typer.Argument(metavar="OUT.safetensors")],
) -> None:
    """Turn a .pth state dict into safetensors, on this machine."""
    from graft.convert import convert as convert_file

    typer.echo(convert_file(source, target))
