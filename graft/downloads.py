"""Fetching a file in pieces that survive a broken connection, checked before it appears under its name."""

import os
from pathlib import Path

import httpx

from graft.archives import Told, sha256_of
from graft.errors import Damaged, GraftApiError
from graft.transport import Transport


def download(transport: Transport, path: str, target: Path, *, tell: Told | None = None) -> Path:
    """Fetch `path` into the file `target`. A `.part` file left by a broken download of the same bytes is continued.

    Damaged if the bytes do not have the announced sha256; nothing appears under `target` then.
    """
    head = _head(transport, path)
    sha256 = head.headers.get("X-Checksum-Sha256") or head.headers.get("ETag", "").strip('"')
    etag = head.headers.get("ETag")
    size_bytes = int(head.headers.get("Content-Length", 0))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{sha256[:16]}.part")

    def attempt() -> httpx.Response:
        have = part.stat().st_size if part.exists() else 0
        if have >= size_bytes > 0:
            return head
        headers = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file, not of a compressed form
        if have:
            headers |= {"Range": f"bytes={have}-"} | ({"If-Range": etag} if etag else {})
        with transport.stream(path, headers=headers) as response:
            _append(response, part, have if response.status_code == 206 else 0, size_bytes, tell)
            return response

    transport.retry(attempt, repeatable=True)
    found = sha256_of(part)
    if sha256 and found != sha256:
        part.unlink()
        raise Damaged(
            f"{target.name} arrived damaged (sha256 {found[:12]}…, promised {sha256[:12]}…): download it again"
        )
    part.replace(target)
    return target


def _head(transport: Transport, path: str) -> httpx.Response:
    """Size and checksum. An answer to HEAD has no body, so a refusal is asked for again in words."""
    try:
        return transport.send("HEAD", path)
    except GraftApiError:
        with transport.stream(path):
            raise


def _append(response: httpx.Response, part: Path, start: int, total: int, tell: Told | None) -> None:
    """Write the body at `start`, dropping what stood behind it."""
    with part.open("r+b" if part.exists() else "wb") as file:
        file.seek(start)
        file.truncate()
        for piece in response.iter_raw():
            file.write(piece)
            if tell:
                tell(file.tell(), total)
        file.flush()
        os.fsync(file.fileno())


def unzip(bundle: Path, folder: Path) -> list[str]:
    """Unpack a bundle into a folder; returns the names. Damaged for a member that would land outside."""
    import zipfile

    with zipfile.ZipFile(bundle) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        root = folder.resolve()
        for name in names:
            if not (root / name).resolve().is_relative_to(root):
                raise Damaged(f"{bundle.name} holds {name!r}, which would land outside {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        archive.extractall(folder)
    return names
