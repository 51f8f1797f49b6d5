"""`client.sources`: weights a job may start from."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from graft.answers import Page, Source, read, read_page
from graft.archives import Told, chunks, sha256_of
from graft.errors import GraftError
from graft.resources.lists import everything
from graft.transport import Transport, segment


class Sources:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def page(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Source]:
        params = {"limit": limit, "cursor": cursor}
        return read_page(Source, self._transport.send("GET", "/sources", params=params).json())

    def list(self) -> Iterator[Source]:
        """Registered weights of this workspace, and torchvision's."""
        return everything(lambda cursor: self.page(limit=100, cursor=cursor))

    def get(self, source_id: str) -> Source:
        return read(Source, self._transport.send("GET", f"/sources/{segment(source_id)}").json())

    def register(
        self,
        file: Path | str,
        backbone: str,
        *,
        name: str | None = None,
        licence: str | None = None,
        classes: Sequence[str] | None = None,
        tell: Told | None = None,
    ) -> Source:
        """Send safetensors weights for a named backbone. `classes` names the outputs of their head, in order."""
        path = Path(file)
        if not path.is_file():
            raise GraftError(f"{path} does not exist: give a .safetensors file")
        if path.suffix.lower() in {".pth", ".pt", ".bin", ".ckpt", ".pkl"}:
            raise GraftError(f"{path} may hold pickled objects: first run `graft convert {path} OUT.safetensors`")
        response = self._transport.send(
            "POST",
            "/sources",
            params={
                "name": name or path.stem,
                "backbone": backbone,
                "licence": licence,
                "classes": json.dumps(list(classes)) if classes else None,
            },
            body=lambda: chunks(path, tell=tell),
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(path.stat().st_size),
                "X-Checksum-Sha256": sha256_of(path),
            },
            timeout_s=600.0,
        )
        return read(Source, response.json())

    def delete(self, source_id: str) -> None:
        self._transport.send("DELETE", f"/sources/{segment(source_id)}")
