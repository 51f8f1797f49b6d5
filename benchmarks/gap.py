"""How long is a worker between two trials: from the commit of the last report to the first optimizer step of the next?

Same backbone, same resolution, one warm worker; embedded, and with Celery over Redis and Postgres. The bound is what
lies in between whatever one does: the end of a trial and the claim of the next one, each committed to the database.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, select

from benchmarks.pictures import archive
from benchmarks.processes import Service, api, running
from benchmarks.servers import postgres, redis
from benchmarks.table import Figure, quantile
from store.leases import take_turn
from store.session import make_engine, reading, transaction
from store.settings import Settings
from store.tables import EventRow, TrialRow

N_TRIALS = 64
MIN_GAPS = 50
N_COMMITS = 50
AIM_MS = {"embedded": 250.0, "Redis": 50.0}
SPACE = {
    "head.kind": "linear",
    "steps": 24,
    "data.batch_size": 16,
    "data.resolution": 32,
    "data.augmentation": 0.0,
}


def measure() -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with embedded(folder / "embedded") as service:
            figures += _figures("embedded", service, folder)
        with distributed(folder / "distributed") as service:
            figures += _figures("Redis", service, folder)
    return figures


@contextmanager
def embedded(home: Path) -> Iterator[Service]:
    """The API and one worker for both queues over SQLite and the local doorbell: what `graft serve` runs."""
    with api(home) as service, running(["worker"], service.env, home / "worker.log"):
        yield service


@contextmanager
def distributed(folder: Path) -> Iterator[Service]:
    """Postgres, Redis, the API, one control worker and one trial worker."""
    with ExitStack() as stack:
        env = {
            "GRAFT_DATABASE_URL": stack.enter_context(postgres()),
            "GRAFT_REDIS_URL": stack.enter_context(redis()),
        }
        service = stack.enter_context(api(folder / "home", env))
        for queue in ("control", "trials"):
            log = service.home / f"worker-{queue}.log"
            stack.enter_context(running(["worker", "--queue", queue], service.env, log))
        yield service


def _figures(label: str, service: Service, folder: Path) -> list[Figure]:
    with service.client(timeout_s=60.0) as client:
        job_id = _run_job(client, folder)
    gaps, commit_ms = _gaps(service, job_id), _commit_ms(service)
    if len(gaps) < MIN_GAPS:
        raise RuntimeError(f"{len(gaps)} gaps are too few to say anything")
    in_ms = {part: [1000 * gap[part] for gap in gaps] for part in gaps[0]}
    whole = in_ms.pop("gap")
    return [
        Figure(f"{label}, gap p50", quantile(whole, 0.5), "ms", ("<=", AIM_MS[label]), bound=2 * commit_ms),
        Figure(f"{label}, gap p95", quantile(whole, 0.95), "ms"),
        *(Figure(f"{label}, of it {part}, p50", quantile(values, 0.5), "ms") for part, values in in_ms.items()),
        Figure(f"{label}, gaps", len(gaps), "gaps", (">=", MIN_GAPS)),
    ]


def _run_job(client: httpx.Client, folder: Path) -> str:
    upload = archive(folder / "gap.zip", n_classes=2, n_per_class=60, side=32)
    headers = {"content-type": "application/zip"}
    params = {"name": "gap", "task": "classification"}
    answer = client.post("/v1/datasets", params=params, headers=headers, content=upload.read_bytes())
    dataset_id = answer.raise_for_status().json()["id"]
    _await(client, f"/v1/datasets/{dataset_id}", "READY", bad=("REJECTED",))
    body: dict[str, Any] = {
        "dataset_id": dataset_id,
        "sources": ["scratch:smallnet"],
        "space": SPACE,
        "budget": {"trials": N_TRIALS},
        "n_folds": 1,
        "parallel": 1,
        "pruner": "none",
        "anchors": False,
    }
    answer = client.post("/v1/jobs", json=body)
    if answer.is_error:
        raise RuntimeError(answer.text)
    job_id = str(answer.json()["id"])
    _await(client, f"/v1/jobs/{job_id}", "COMPLETE", bad=("FAILED", "CANCELLED"))
    return job_id


def _await(client: httpx.Client, path: str, state: str, *, bad: tuple[str, ...], timeout_s: float = 900.0) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        thing = client.get(path).raise_for_status().json()
        if thing["state"] == state:
            return
        if thing["state"] in bad:
            raise RuntimeError(f"{path} is {thing['state']}: {thing.get('error')}")
        time.sleep(0.5)  # seldom, so that the reading does not disturb what is measured
    raise TimeoutError(f"{path} is not {state} after {timeout_s:g} s")


def _gaps(service: Service, job_id: str) -> list[dict[str, float]]:
    """Between consecutive trials, whole and by part, in seconds. Both clocks are this machine's."""
    engine = _engine(service)
    with reading(engine) as session:
        trials = session.scalars(select(TrialRow).where(TrialRow.job_id == job_id).order_by(TrialRow.number)).all()
        reports = session.scalars(
            select(EventRow).where(EventRow.job_id == job_id, EventRow.kind == "trial.report").order_by(EventRow.seq)
        ).all()
        last_report = {event.body["trial_id"]: event.at for event in reports}
        found = [
            _parts(last_report[before.id], before, after)
            for before, after in pairwise(trials)
            if before.id in last_report and "first_step_at" in after.attrs
        ]
    engine.dispose()
    return found


def _commit_ms(service: Service) -> float:
    """The median of a transaction that changes one row."""
    engine, took = _engine(service), []
    for _ in range(N_COMMITS):
        began = time.perf_counter()
        with transaction(engine) as session:
            take_turn(session, "gap", "gap", 60.0)
        took.append(1000 * (time.perf_counter() - began))
    engine.dispose()
    return quantile(took, 0.5)


def _engine(service: Service) -> Engine:
    settings = Settings(home=service.home, database_url=service.env.get("GRAFT_DATABASE_URL"))
    return make_engine(settings.database)


def _parts(reported_at: float, before: TrialRow, after: TrialRow) -> dict[str, float]:
    first_step_at = float(after.attrs["first_step_at"])
    ended_at = float(before.finished_at or 0.0)
    asked_at = max(after.created_at, ended_at)  # a recipe may have been asked for while the one before was training
    claimed_at = float(after.started_at or 0.0)
    return {
        "gap": first_step_at - reported_at,
        "last report to end of trial": ended_at - reported_at,
        "end of trial to next recipe": asked_at - ended_at,
        "next recipe to claim": claimed_at - asked_at,
        "claim to first step": first_step_at - claimed_at,
    }
