"""How commands reach the service, and how they print."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from graft.client import Client


def connect() -> "Client":
    """A client for the configured service."""
    from graft.client import Client

    return Client()


def print_json(content: Any) -> None:
    """Answers for programs."""
    if is_dataclass(content) and not isinstance(content, type):
        content = asdict(content)
    elif isinstance(content, list):
        content = [asdict(item) if is_dataclass(item) and not isinstance(item, type) else item for item in content]
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns for people; plain text, so that it can be cut and searched."""
    table = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
