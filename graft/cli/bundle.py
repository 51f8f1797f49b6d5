"""A finished job's bundle as a folder."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from graft.errors import GraftError

if TYPE_CHECKING:
    from graft.client import Client


def fetch_bundle(client: "Client", job_id: str, out: Path) -> tuple[Path, list[str]]:
    """Download and unpack into `out`, which must be new or empty; a name ending in .zip keeps the archive."""
    from graft.downloads import unzip

    if out.suffix.lower() == ".zip":
        return client.jobs.download_bundle(job_id, out), []
    check_empty(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="graft-bundle-", dir=out.parent) as scratch:
        archive = client.jobs.download_bundle(job_id, Path(scratch) / "bundle.zip")
        return out, unzip(archive, out)


def check_empty(out: Path) -> None:
    """GraftError before anything is spent, rather than files mixed with the user's."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GraftError(f"{out} exists and is not empty: choose another folder with --out")


def fresh_folder(stem: str) -> Path:
    """`<stem>-graft` here, or with the first number that makes it new."""
    for k in range(1, 10_000):
        folder = Path(f"{stem}-graft" if k == 1 else f"{stem}-graft-{k}")
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return folder
    raise GraftError(f"there are ten thousand folders {stem}-graft-…: give --out")
