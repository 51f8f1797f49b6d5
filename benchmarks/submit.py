"""How long does a submit take, over the real API, with SQLite and with Postgres?"""

import tempfile
import time
from pathlib import Path

from sqlalchemy import select

from benchmarks.pictures import archive
from benchmarks.processes import Service, api
from benchmarks.servers import postgres
from benchmarks.table import Figure, quantile
from domain.dataset import Manifest
from domain.ids import new_id
from domain.states import DatasetState
from intake.limits import Limits
from intake.prepare import prepare
from store.session import make_engine, transaction
from store.settings import Settings
from store.tables import DatasetRow, WorkspaceRow

N_WARM, N_TIMED = 20, 400


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = _manifest(folder)
        figures = _measure("SQLite", folder / "sqlite", {}, manifest)
        with postgres() as url:
            figures += _measure("Postgres", folder / "home", {"GRAFT_DATABASE_URL": url}, manifest)
    return figures


def _manifest(folder: Path) -> Manifest:
    upload = archive(folder / "pictures.zip", n_classes=3, n_per_class=20, side=32)
    return prepare(upload, folder / "items.zip", task="classification", options={}, limits=Limits())


def _measure(label: str, home: Path, env: dict[str, str], manifest: Manifest) -> list[Figure]:
    with api(home, env) as service:
        dataset_id = _ready_dataset(service, manifest)
        times_ms = [1000 * s for s in _submit(service, dataset_id)]
    return [
        Figure(f"{label}, submit p50", quantile(times_ms, 0.5), "ms"),
        Figure(f"{label}, submit p99", quantile(times_ms, 0.99), "ms"),
    ]


def _ready_dataset(service: Service, manifest: Manifest) -> str:
    """The row that a worker would have left; no worker runs here, so that the API is measured alone."""
    settings = Settings(home=service.home, database_url=service.env.get("GRAFT_DATABASE_URL"))
    engine = make_engine(settings.database)
    with transaction(engine) as session:
        row = DatasetRow(
            id=new_id("dataset"),
            workspace_id=session.scalars(select(WorkspaceRow.id)).one(),
            name="pictures",
            task="classification",
            state=str(DatasetState.READY),
            content_hash=manifest.content_hash,
            items_blob="none",
            options={},
            summary=manifest.model_dump(mode="json", exclude={"items", "findings"}),
            findings=[],
        )
        session.add(row)
        dataset_id = row.id
    engine.dispose()
    return dataset_id


def _submit(service: Service, dataset_id: str) -> list[float]:
    body = {"dataset_id": dataset_id, "sources": ["scratch:smallnet"], "budget": {"trials": 20}}
    times: list[float] = []
    with service.client() as client:
        for number in range(N_WARM + N_TIMED):
            headers = {"idempotency-key": f"submit-{number}"}
            began = time.perf_counter()
            answer = client.post("/v1/jobs", json=body, headers=headers)
            times.append(time.perf_counter() - began)
            answer.raise_for_status()
    return times[N_WARM:]
