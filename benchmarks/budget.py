"""Does a budget of time hold? Real jobs on the embedded service, from the first trial to the bundle.

Photographs where they are at hand (`DATA` in `benchmarks/method_cases.py`), with a source that is registered for the
purpose; else pictures made up here, from scratch. The overrun may be 5 % or 15 s, whichever is more; the reserve for
the finish is printed beside what the finish took.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gap import embedded
from benchmarks.method_cases import DATA
from benchmarks.pictures import archive
from benchmarks.table import Figure
from domain.budget import LATE_S, LATE_SHARE
from graft import Client
from graft.answers import Job
from graft.errors import GraftError

WALL_S = (45.0, 90.0, 180.0)
WEIGHTS = ("mobilenet_v2_w035", "mobilenet_v2_w035_in1k_features.safetensors")


def measure(walls: Sequence[float] = WALL_S) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with embedded(folder / "home") as service, Client(service.url, service.key) as client:
            pictures, source = _case(client, folder)
            dataset = client.datasets.wait(client.datasets.upload(pictures).id)
            for wall_s in walls:
                job = client.jobs.submit(dataset.id, sources=[source], wall_s=wall_s)
                figures += _figures(wall_s, _ended(client, job.id, within_s=4 * wall_s + 600))
    return figures


def _case(client: Client, folder: Path) -> tuple[Path, str]:
    photographs, weights = DATA / "hymenoptera.zip", DATA / "weights" / WEIGHTS[1]
    if photographs.exists() and weights.exists():
        return photographs, str(client.sources.register(weights, WEIGHTS[0]).id)
    return archive(folder / "made_up.zip", n_classes=2, n_per_class=200, side=32), "scratch:smallnet"


def _ended(client: Client, job_id: str, *, within_s: float) -> Job:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        job = client.jobs.get(job_id)
        if job.finished:
            return job
        time.sleep(0.5)  # seldom, so that the reading does not disturb what is measured
    raise GraftError(f"{job_id} is not over after {within_s:g} s")


def _figures(wall_s: float, job: Job) -> list[Figure]:
    """A budget that the probe has refused as too small has no overrun: its row says why."""
    label, aim = f"budget of {wall_s:g} s", ("<=", max(LATE_SHARE * wall_s, LATE_S))
    refused = (job.error or {}).get("code") == "budget_too_small" and not job.progress.trials_done
    if refused:
        return [Figure(f"{label}: overrun (refused)", None, "s", aim, {"error": job.error})]
    if job.state != "COMPLETE" or job.elapsed_s is None:
        raise GraftError(f"{job.id} is {job.state}: {job.error}")
    estimate = job.estimate or {}
    columns = {"stopped_by": job.stopped_by, "by_state": job.progress.by_state}
    return [
        Figure(f"{label}: overrun", job.elapsed_s - wall_s, "s", aim, columns),
        Figure(f"{label}: kept for the finish", float(estimate.get("finish_s", 0.0)), "s"),
        Figure(f"{label}: trials done", float(job.progress.trials_done), "trials", (">=", 1.0)),
    ]
