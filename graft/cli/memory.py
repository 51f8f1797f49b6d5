"""Which job a path was sent to, kept in `<home>/jobs.json`, so that a later call goes on with it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graft.home import origin, read_json, running, write_json

KEPT = 200  # entries; the oldest go first


@dataclass(frozen=True, slots=True)
class Remembered:
    path: str
    sha256: str
    service: str  # its URL; "embedded" for the one of this home, whose port may change
    dataset_id: str
    job_id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # of the dataset


def service_name(home: Path, url: str) -> str:
    """What a service is remembered by."""
    local = running(home)
    return "embedded" if local and origin(local.url) == origin(url) else url


def recall(
    home: Path, path: Path, sha256: str, service: str, options: dict[str, Any] | None = None
) -> Remembered | None:
    """What the same content at the same place was sent to, on the same service with the same options."""
    entry = _all(home).get(_name(str(path), sha256, service, options or {}))
    try:
        return Remembered(**entry) if entry else None
    except TypeError:  # written by another version
        return None


def remember(home: Path, entry: Remembered) -> None:
    entries = _all(home)
    name = _name(entry.path, entry.sha256, entry.service, entry.options)
    entries.pop(name, None)
    entries[name] = asdict(entry)
    write_json(home / "jobs.json", dict(list(entries.items())[-KEPT:]))


def _name(path: str, sha256: str, service: str, options: dict[str, Any]) -> str:
    name = f"{path} {sha256} {service}"
    return f"{name} {json.dumps(options, sort_keys=True)}" if options else name


def _all(home: Path) -> dict[str, dict[str, Any]]:
    content = read_json(home / "jobs.json")
    return content if isinstance(content, dict) else {}
