"""The home folder of an embedded service, and how a client finds the service that runs in it.

`<home>/serve.lock`    held (flock) by a living `graft serve`, so that nobody mistakes a stale file for a service
`<home>/service.json`  {"url", "pid"}; written when the service is ready, removed when it ends
`<home>/key`           the API key of the embedded service, mode 0600
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from graft.errors import NoService


def home_folder(home: Path | str | None = None) -> Path:
    """The argument, else GRAFT_HOME, else ~/.graft."""
    return Path(home or os.environ.get("GRAFT_HOME") or "~/.graft").expanduser().absolute()


@dataclass(frozen=True, slots=True)
class Running:
    """A living embedded service."""

    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Address:
    url: str
    key: str = field(repr=False)


def take_lock(home: Path) -> IO[str] | None:
    """Hold the home for a service; None if another process holds it. The lock goes with the returned file."""
    import fcntl

    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = (home / "serve.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def is_held(home: Path) -> bool:
    """Whether a `graft serve` lives in this home, ready or not."""
    if not (home / "serve.lock").exists():
        return False
    file = take_lock(home)
    if file is None:
        return True
    file.close()
    return False


def running(home: Path) -> Running | None:
    """The ready service of this home. A file left by a killed one does not count."""
    facts = read_json(home / "service.json")
    if not isinstance(facts, dict) or "url" not in facts or "pid" not in facts or not is_held(home):
        return None
    return Running(str(facts["url"]), int(facts["pid"]))


def find(url: str | None = None, key: str | None = None, home: Path | str | None = None) -> Address:
    """Where to send requests, and with which key. The embedded key is never sent to another service."""
    folder = home_folder(home)
    url = url or os.environ.get("GRAFT_URL") or None
    key = key or os.environ.get("GRAFT_API_KEY") or None
    local = running(folder)
    if url is None:
        if local is None:
            raise NoService(f"no service: set GRAFT_URL and GRAFT_API_KEY, or start one with `graft serve` ({folder})")
        url = local.url
    if key is None:
        key_file = folder / "key"
        if local is None or origin(local.url) != origin(url) or not key_file.exists():
            raise NoService(f"no API key for {url}: set GRAFT_API_KEY")
        key = key_file.read_text("utf-8").strip()
    return Address(url.rstrip("/"), key)


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what tells one service from another."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if it is absent or damaged."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def write_json(file: Path, content: Any) -> None:
    """Replace a JSON file whole, readable by its owner alone."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    partial.replace(file)
