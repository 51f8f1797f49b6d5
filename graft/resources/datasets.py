"""`client.datasets`: upload, look, wait, delete."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from graft.answers import Dataset, Finding, Page, read, read_page
from graft.archives import Archive, Told, as_archive
from graft.errors import GraftApiError, GraftError
from graft.resources.lists import everything
from graft.transport import Transport, segment
from graft.uploads import RESUMABLE_ABOVE_BYTES, send_resumable, send_whole

_SETTLED = frozenset({"READY", "REJECTED", "DELETED"})


class Datasets:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self,
        path: Path | str,
        name: str | None = None,
        task: str = "classification",
        options: Mapping[str, Any] | None = None,
        *,
        tell: Told | None = None,
        memory: Path | None = None,
    ) -> Dataset:
        """Send a folder, a CSV beside its images, or an archive. Above 64 MB the upload survives broken connections;
        `memory` names a JSON file that lets a later call go on with it. `tell(done, total)` hears of the progress."""
        path = Path(path)
        with tempfile.TemporaryDirectory(prefix="graft-upload-") as scratch:
            archive = as_archive(path, Path(scratch))
            return self.upload_archive(archive, name or path.stem, task, options, tell=tell, memory=memory)

    def upload_archive(
        self,
        archive: Archive,
        name: str,
        task: str = "classification",
        options: Mapping[str, Any] | None = None,
        *,
        tell: Told | None = None,
        memory: Path | None = None,
    ) -> Dataset:
        """Send an archive that `graft.archives` has made."""
        facts = {"name": name, "task": task, "options": dict(options or {})}
        if archive.size_bytes > RESUMABLE_ABOVE_BYTES:
            return send_resumable(self._transport, archive, facts, tell=tell, memory=memory)
        return send_whole(self._transport, archive, facts, tell=tell)

    def wait(
        self, dataset_id: str, timeout_s: float | None = None, *, tell: Callable[[Dataset], None] | None = None
    ) -> Dataset:
        """The dataset once it is READY. GraftApiError(code of the rejection) if it is rejected."""
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.1
        while True:
            dataset = self.get(dataset_id)
            if tell:
                tell(dataset)
            if dataset.state == "READY":
                return dataset
            if dataset.state in _SETTLED:
                error = dataset.error or {}
                detail = error.get("detail") or f"the dataset is {dataset.state}"
                facts = {**error.get("facts", {}), "dataset_id": dataset.id}
                raise GraftApiError(str(error.get("code", "dataset_rejected")), str(detail), 422, facts)
            if ends is not None and time.monotonic() >= ends:
                raise GraftError(f"dataset {dataset_id} is still {dataset.state} after {timeout_s:g} s")
            self._transport.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 2.0)

    def get(self, dataset_id: str) -> Dataset:
        return read(Dataset, self._transport.send("GET", f"/datasets/{segment(dataset_id)}").json())

    def page(self, *, limit: int | None = None, cursor: str | None = None) -> Page[Dataset]:
        params = {"limit": limit, "cursor": cursor}
        return read_page(Dataset, self._transport.send("GET", "/datasets", params=params).json())

    def list(self) -> Iterator[Dataset]:
        """Every dataset of the workspace, newest first, fetched page by page."""
        return everything(lambda cursor: self.page(limit=100, cursor=cursor))

    def findings(self, dataset_id: str) -> Iterator[Finding]:
        """Everything noticed about the items, without the cut that `Dataset.findings` has."""
        path = f"/datasets/{segment(dataset_id)}/findings"
        return everything(
            lambda cursor: read_page(
                Finding, self._transport.send("GET", path, params={"limit": 200, "cursor": cursor}).json()
            )
        )

    def delete(self, dataset_id: str) -> None:
        """Free its bytes. GraftApiError with status 409 and the jobs in `facts["needed_by"]` if something needs it."""
        self._transport.send("DELETE", f"/datasets/{segment(dataset_id)}")
