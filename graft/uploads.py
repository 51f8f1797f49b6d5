"""Sending an archive: one request when it is small; when it is large, tus 1.0, which goes on after a break."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from graft.answers import Dataset, read
from graft.archives import Archive, Told, chunks
from graft.errors import GraftApiError
from graft.home import read_json, write_json
from graft.transport import Transport, segment

RESUMABLE_ABOVE_BYTES = 64 << 20
_TUS = {"Tus-Resumable": "1.0.0"}
_OFFSET_MOVED = frozenset({409, 423})  # the server got further than we know, or still holds the broken request


def send_whole(
    transport: Transport, archive: Archive, facts: Mapping[str, Any], *, tell: Told | None = None
) -> Dataset:
    """POST the bytes with their checksum."""
    response = transport.send(
        "POST",
        "/datasets",
        params={"name": facts["name"], "task": facts["task"], "options": _compact(facts["options"])},
        body=lambda: chunks(archive.path, tell=tell),
        headers={
            "Content-Type": archive.media_type,
            "Content-Length": str(archive.size_bytes),
            "X-Checksum-Sha256": archive.sha256,
        },
        timeout_s=600.0,
    )
    return read(Dataset, response.json())


def send_resumable(
    transport: Transport,
    archive: Archive,
    facts: Mapping[str, Any],
    *,
    piece_bytes: int = RESUMABLE_ABOVE_BYTES,
    tell: Told | None = None,
    memory: Path | None = None,
) -> Dataset:
    """Send by tus. A broken connection continues at the server's offset; `memory`, a JSON file, carries a broken
    upload over to the next call in another process."""
    known = _Memory(memory, transport, archive, facts)
    upload = known.recall() or _create(transport, archive, facts)
    known.keep(upload)
    offset = _offset(transport, upload["path"])
    while offset < archive.size_bytes:
        end = min(offset + piece_bytes, archive.size_bytes)
        offset = _send_piece(transport, archive, upload["path"], offset, end, tell)
    known.forget()
    return read(Dataset, transport.send("GET", f"/datasets/{segment(upload['dataset_id'])}").json())


def _create(transport: Transport, archive: Archive, facts: Mapping[str, Any]) -> dict[str, str]:
    metadata = {
        "filename": archive.path.name,
        "filetype": archive.media_type,
        "name": facts["name"],
        "task": facts["task"],
        "options": _compact(facts["options"]),
        "sha256": archive.sha256,
    }
    encoded = ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in metadata.items() if v)
    response = transport.send(
        "POST",
        "/uploads",
        headers={**_TUS, "Upload-Length": str(archive.size_bytes), "Upload-Metadata": encoded},
        idempotent=True,  # an upload nobody continues expires
    )
    location, dataset_id = response.headers.get("Location"), response.headers.get("Graft-Dataset-Id")
    if not location or not dataset_id:
        raise GraftApiError("unreadable_answer", "the upload was opened without Location and Graft-Dataset-Id", 201)
    return {"path": _below_v1(location), "dataset_id": dataset_id}


def _send_piece(transport: Transport, archive: Archive, path: str, offset: int, end: int, tell: Told | None) -> int:
    """Send [offset, end) and return the offset the server has then. After a break, ask it first how far it got."""
    at, fresh = offset, True

    def attempt() -> httpx.Response:
        nonlocal at, fresh
        if not fresh:
            at = _offset(transport, path)
        fresh = False
        if at >= end:
            return httpx.Response(204, headers={"Upload-Offset": str(at)})
        return transport.once(
            "PATCH",
            path,
            body=lambda: chunks(archive.path, at, end, tell=tell),
            headers={
                **_TUS,
                "Upload-Offset": str(at),
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(end - at),
            },
            timeout_s=600.0,
        )

    response = transport.retry(attempt, repeatable=True, also=_OFFSET_MOVED)
    return int(response.headers["Upload-Offset"])


def _offset(transport: Transport, path: str) -> int:
    return int(transport.send("HEAD", path, headers=_TUS).headers["Upload-Offset"])


class _Memory:
    """Unfinished uploads, kept in a JSON file by content: {digest: {"path", "dataset_id"}}."""

    def __init__(self, file: Path | None, transport: Transport, archive: Archive, facts: Mapping[str, Any]) -> None:
        self.file = file
        self.transport = transport
        self.archive = archive
        where = transport.address.url
        self.name = f"{where} {archive.sha256} {facts['name']} {facts['task']} {_compact(facts['options'])}"

    def recall(self) -> dict[str, str] | None:
        """The unfinished upload of the same bytes to the same service, if the service still has it."""
        upload = self._all().get(self.name)
        if not upload:
            return None
        try:
            _offset(self.transport, upload["path"])
        except GraftApiError:
            return None  # expired, or ended
        return upload

    def keep(self, upload: dict[str, str]) -> None:
        if self.file:
            write_json(self.file, {**self._all(), self.name: upload})

    def forget(self) -> None:
        if self.file:
            write_json(self.file, {name: upload for name, upload in self._all().items() if name != self.name})

    def _all(self) -> dict[str, dict[str, str]]:
        content = read_json(self.file) if self.file else None
        return content if isinstance(content, dict) else {}


def _compact(options: Mapping[str, Any] | None) -> str | None:
    return json.dumps(options, separators=(",", ":"), sort_keys=True) if options else None


def _below_v1(location: str) -> str:
    """A Location, absolute or not, as a path for the transport."""
    path = urlsplit(location).path
    return path[path.index("/v1/") + 3 :] if "/v1/" in path else path
