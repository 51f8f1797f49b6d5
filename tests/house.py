"""An API over SQLite and local blobs, as tests see it: requests, and rows as workers leave them."""

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import httpx2
from starlette.testclient import TestClient

from api.site import Site
from api.submit import default_spec
from domain.catalogue import catalogue
from domain.ids import new_id
from domain.job import Budget, JobSpec
from domain.recipe import Recipe
from domain.trial import Report
from store.blob_rows import add_blob
from store.jobs import create_job
from store.keys import create_key
from store.moves import become
from store.session import reading, transaction
from store.tables import DatasetRow, JobRow, LotRow, ReportRow, SourceRow, TrialRow, WorkspaceRow

CLASSES = ["daisy", "rose", "tulip"]
STATISTICS: dict[str, Any] = {
    "n_items": 1000, "n_classes": 3, "per_split": {"train": 700, "val": 150, "test": 150},
    "per_class": {name: {"train": 233, "val": 50, "test": 50} for name in CLASSES},
    "width_quantiles": [64, 64, 64, 64, 64], "height_quantiles": [64, 64, 64, 64, 64],
}  # fmt: skip
WAYS = {
    "WAITING": (), "PROBING": ("PROBING",), "RUNNING": ("PROBING", "RUNNING"),
    "PAUSED": ("PROBING", "RUNNING", "PAUSED"), "FINISHING": ("PROBING", "RUNNING", "FINISHING"),
    "COMPLETE": ("PROBING", "RUNNING", "FINISHING", "COMPLETE"), "FAILED": ("FAILED",), "CANCELLED": ("CANCELLED",),
}  # fmt: skip


def a_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo("daisy/1.jpg"), b"not looked at by the API")
    return out.getvalue()


@dataclass
class House:
    """One installation with its API, as a test sees it."""

    site: Site
    client: TestClient
    workspace_id: str
    key: str

    def as_of(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = self.as_of(self.key) | more.pop("headers", {})
        return self.client.request(method, path, headers=headers, **more)

    def add_workspace(self, name: str = "elsewhere") -> tuple[str, str]:
        """A workspace and a key of it."""
        with transaction(self.site.engine) as session:
            row = WorkspaceRow(id=new_id("workspace"), name=name)
            session.add(row)
            session.flush()
            return row.id, create_key(session, row.id, "first")[1]

    def add_dataset(self, state: str = "READY", classes: list[str] | None = None, **changes: Any) -> str:
        """A dataset as the API and a worker leave it."""
        made = self.ask("POST", "/v1/datasets?name=flowers", content=a_zip()).json()
        with transaction(self.site.engine) as session:
            row = session.get_one(DatasetRow, made["id"])
            if state in ("READY", "REJECTED"):
                summary = {"classes": classes or CLASSES, "statistics": STATISTICS, "n_findings": 0}
                facts = {"content_hash": "ab" * 32, "summary": summary, "findings": []} | changes
                become(session, row, state, **facts)
        return str(made["id"])

    def add_source(self, backbone: str = "resnet18", classes: list[str] | None = None) -> str:
        """Registered weights."""
        source = new_id("source")
        blob = self.keep_blob(source, f"{self.workspace_id}/sources/{source}/weights.safetensors", b"weights")
        with transaction(self.site.engine) as session:
            row = SourceRow(
                id=source, workspace_id=self.workspace_id, name="mine", backbone=backbone, blob=blob, size_bytes=7,
                sha256="0" * 64, n_classes=len(classes or []), classes=classes or [], licence="MIT",
            )  # fmt: skip
            session.add(row)
        return source

    def add_job(self, state: str = "WAITING", dataset_id: str | None = None, **changes: Any) -> str:
        """A job; when COMPLETE with a bundle and a best trial whose checkpoint is kept."""
        dataset_id = dataset_id or self.add_dataset()
        spec = default_spec(catalogue()).model_copy(update={"budget": Budget(trials=4), **changes})

        def build() -> JobRow:
            return JobRow(
                id=new_id("job"), workspace_id=self.workspace_id, name="a job", dataset_id=dataset_id,
                state="WAITING", spec=spec.model_dump(mode="json"),
            )  # fmt: skip

        with transaction(self.site.engine) as session:
            job, _ = create_job(session, self.workspace_id, None, "", build)
            job_id = job.id
        steps = WAYS[state]
        with transaction(self.site.engine) as session:
            for step in steps:
                become(session, session.get_one(JobRow, job_id), step)
        if state == "COMPLETE":
            self._complete(job_id, spec)
        return job_id

    def add_trial(self, job_id: str, number: int = 0, state: str = "RUNNING", **changes: Any) -> str:
        recipe = Recipe(task="classification", source="torchvision:resnet18", backbone="resnet18")
        with transaction(self.site.engine) as session:
            lot = LotRow(id=new_id("lot"), workspace_id=self.workspace_id, job_id=job_id, state="DONE")
            session.add(lot)
            session.flush()
            values = {"values": {"optimizer.lr_head": 0.01}, "recipe": recipe.model_dump(mode="json")} | changes
            row = TrialRow(
                id=new_id("trial"), workspace_id=self.workspace_id, job_id=job_id, lot_id=lot.id, number=number,
                state=state, **values,
            )  # fmt: skip
            session.add(row)
            session.flush()
            for step in (10, 20):
                report = Report(trial_id=row.id, fold=0, phase=0, step=step, share=step / 20, value=1 / step)
                session.add(ReportRow(**report.model_dump()))
            return row.id

    def keep_blob(self, owner_id: str, key: str, data: bytes) -> str:
        info = self.site.blobs.put(key, io.BytesIO(data))
        with transaction(self.site.engine) as session:
            add_blob(session, self.workspace_id, key, info, owner_id)
        return key

    def _complete(self, job_id: str, spec: JobSpec) -> None:
        trial_id = self.add_trial(job_id, state="COMPLETE", value=0.25)
        checkpoint = self.keep_blob(trial_id, f"{self.workspace_id}/trials/{trial_id}/1/weights.safetensors", b"w" * 99)
        bundle = self.keep_blob(job_id, f"{self.workspace_id}/jobs/{job_id}/bundle.zip", bytes(range(256)) * 16)
        with transaction(self.site.engine) as session:
            session.get_one(TrialRow, trial_id).checkpoint_blob = checkpoint
            job = session.get_one(JobRow, job_id)
            job.bundle_blob, job.best_trial_id = bundle, trial_id


def check_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The answer is this problem, in the form that all have."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["type"] == f"urn:graft:problem:{code}"
    assert body["title"]
    assert body["detail"]
    return body


def ask(house: House, **body: Any) -> Any:
    body = {"dataset_id": house.add_dataset(), "budget": {"trials": 3}} | body
    return house.ask("POST", "/v1/jobs", json=body)


def spec_of(house: House, **body: Any) -> JobSpec:
    answer = ask(house, **body)
    assert answer.status_code == 201, answer.text
    with reading(house.site.engine) as session:
        return JobSpec.model_validate(session.get_one(JobRow, answer.json()["id"]).spec)
