"""Do N workers give N times the trials? Workers whose trials sleep, 1 to 64 of them, over real Redis and Postgres.

One job without end; workers join it. At every size the trials that end in a while are counted, and the share of their
time is taken that workers are in a trial's sleep: what is left is what surrounds a trial. All of these workers share
this machine's cores with the database, so beside each rate stands what those cores would allow, had they nothing to do
but what surrounds a trial, and how many transactions wait for another one's lock at a time: on the job's row, where all
workers of a job meet, or elsewhere. In a second part the trials are so short that the cores are the limit. At the end
real workers train real trials, one on one core and two on two.
"""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
from sqlalchemy import Engine, func, select, text

from benchmarks.pictures import archive
from benchmarks.processes import TICKS, Service, api, running
from benchmarks.servers import postgres, redis
from benchmarks.table import Figure, render
from store.session import make_engine, reading
from store.settings import Settings
from store.tables import TrialRow, WorkerRow

SIZES = (1, 2, 4, 8, 16, 32, 64)
SLEEP_S, WINDOW_S = 12.0, 24.0
SHORT_SLEEP_S, SHORT_SIZES = 4.0, (32, 64)
LOOK_EVERY_S = 0.05
N_REAL, REAL_STEPS = 16, 1000
WAITING = text("""
    SELECT query ILIKE '%jobs%' AS is_of_job, count(*) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND datname = current_database() GROUP BY 1
""")


def measure() -> list[Figure]:
    return _measure(SIZES, SLEEP_S) + _measure(SHORT_SIZES, SHORT_SLEEP_S) + _real()


def _measure(sizes: Sequence[int], sleep_s: float) -> list[Figure]:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        env = {"GRAFT_DATABASE_URL": stack.enter_context(postgres()), "GRAFT_REDIS_URL": stack.enter_context(redis())}
        service = stack.enter_context(api(folder / "home", env))
        stack.enter_context(running(["worker", "--queue", "control"], service.env, service.home / "control.log"))
        engine = _engine(stack, service)
        client = stack.enter_context(service.client(timeout_s=60.0))
        job_id, n_workers = _job(client, folder, n_trials=10_000, steps=100, n_per_class=30), 0
        for size in sizes:
            while n_workers < size:
                log = service.home / f"sleeper-{n_workers}.log"
                stack.enter_context(running(["benchmarks.sleeper", str(sleep_s)], service.env, log))
                n_workers += 1
            _await_workers(engine, size)
            time.sleep(2 * sleep_s)  # until all of them are in their stride
            figures += (found := _figures(engine, size, sleep_s))
            print(render({"scale": found}), file=sys.stderr, flush=True)
        client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        _await_quiet(engine)
    return figures


def _real() -> list[Figure]:
    rates = {n: _rate_of_real(n) for n in (1, 2)}
    most = float(min(2, os.cpu_count() or 1))
    what = "real workers, smallnet at 32 px, a thread each"
    figures = [Figure(f"{n} {what}: trials", rate, "trials/s") for n, rate in rates.items()]
    return [*figures, Figure(f"2 {what}: times the trials of 1", rates[2] / rates[1], "ratio", bound=most)]


def _rate_of_real(n_workers: int) -> float:
    """Trials a second, from the first one's start to the last one's end."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        env = {"GRAFT_DATABASE_URL": stack.enter_context(postgres()), "GRAFT_REDIS_URL": stack.enter_context(redis())}
        service = stack.enter_context(api(folder / "home", env))
        for n in range(n_workers):
            arguments = ["worker"] if n == 0 else ["worker", "--queue", "trials"]
            stack.enter_context(running(arguments, service.env, service.home / f"worker-{n}.log"))
        engine = _engine(stack, service)
        _await_workers(engine, n_workers)
        client = stack.enter_context(service.client(timeout_s=60.0))
        job_id = _job(client, folder, n_trials=N_REAL, steps=REAL_STEPS, n_per_class=300)
        until = time.monotonic() + 600
        while (state := client.get(f"/v1/jobs/{job_id}").json()["state"]) != "COMPLETE":
            if state in ("FAILED", "CANCELLED") or time.monotonic() > until:
                raise RuntimeError(f"the job is {state}")
            time.sleep(0.5)
        with reading(engine) as session:
            ended = select(func.count(), func.min(TrialRow.started_at), func.max(TrialRow.finished_at))
            n, first, last = session.execute(ended.where(TrialRow.state == "COMPLETE")).one()
        return float(n / (float(last or 0.0) - float(first or 0.0)))


def _engine(stack: ExitStack, service: Service) -> Engine:
    engine = make_engine(Settings(home=service.home, database_url=service.env["GRAFT_DATABASE_URL"]).database)
    stack.callback(engine.dispose)
    return engine


def _job(client: httpx.Client, folder: Path, *, n_trials: int, steps: int, n_per_class: int) -> str:
    upload = archive(folder / "pictures.zip", n_classes=2, n_per_class=n_per_class, side=32)
    answer = client.post(
        "/v1/datasets", params={"name": "pictures", "task": "classification"},
        headers={"content-type": "application/zip"}, content=upload.read_bytes(),
    )  # fmt: skip
    dataset_id = answer.raise_for_status().json()["id"]
    until = time.monotonic() + 60
    while client.get(f"/v1/datasets/{dataset_id}").json()["state"] != "READY":
        if time.monotonic() > until:
            raise TimeoutError("the dataset is not ready")
        time.sleep(0.2)
    body = {
        "dataset_id": dataset_id, "sources": ["scratch:smallnet"], "space": {"steps": steps, "data.resolution": 32},
        "budget": {"trials": n_trials}, "n_folds": 1, "pruner": "none", "anchors": False, "sampler": "random",
    }  # fmt: skip
    answer = client.post("/v1/jobs", json=body)
    if answer.is_error:
        raise RuntimeError(answer.text)
    return str(answer.json()["id"])


def _await_workers(engine: Engine, size: int) -> None:
    """Until `size` workers say that they live."""
    until = time.monotonic() + 180
    while time.monotonic() < until:
        with reading(engine) as session:
            alive = [row for row in session.scalars(select(WorkerRow)) if "trials" in row.queues]
        if len(alive) >= size:
            return
        time.sleep(0.5)
    raise TimeoutError(f"fewer than {size} workers live")


def _await_quiet(engine: Engine) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with reading(engine) as session:
            if not session.scalar(select(func.count()).where(TrialRow.state == "RUNNING")):
                return
        time.sleep(0.5)


def _figures(engine: Engine, size: int, sleep_s: float) -> list[Figure]:
    n_cores = os.cpu_count() or 1
    cpu_s, began, n_before, since = _machine_cpu_s(), time.monotonic(), _n_complete(engine), time.time()
    for_job, elsewhere = _waiting(engine)
    n, took, cpu_s = _n_complete(engine) - n_before, time.monotonic() - began, _machine_cpu_s() - cpu_s
    what = f"{size} workers, trials of {sleep_s:g} s"
    columns = {"cpu_ms_per_trial": 1000 * cpu_s / max(1, n), "cores_are_busy": cpu_s / took / n_cores}
    return [
        Figure(f"{what}: trials", n / took, "trials/s", None, columns, bound=n_cores / (cpu_s / max(1, n))),
        Figure(f"{what}: of {size} times one trial", _slept_s(engine, since, took, sleep_s) / size / took, "share"),
        Figure(f"{what}: transactions that wait for the job's row", for_job, "at a time"),
        Figure(f"{what}: that wait for another lock", elsewhere, "at a time"),
    ]


def _slept_s(engine: Engine, since: float, took: float, sleep_s: float) -> float:
    """Seconds that trials slept between `since` and `took` later, all workers together."""
    with reading(engine) as session:
        attrs = session.scalars(select(TrialRow.attrs).where(TrialRow.started_at > since - sleep_s - took))
        begun = [float(found["first_step_at"]) for found in attrs if "first_step_at" in found]
    return sum(max(0.0, min(at + sleep_s, since + took) - max(at, since)) for at in begun)


def _waiting(engine: Engine) -> tuple[float, float]:
    """Transactions that wait for a lock, the mean over a while: on the job's row, elsewhere."""
    seen, n = {True: 0, False: 0}, 0
    until = time.monotonic() + WINDOW_S
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while time.monotonic() < until:
            for is_of_job, count in connection.execute(WAITING):
                seen[is_of_job] += count
            n += 1
            time.sleep(LOOK_EVERY_S)
    return seen[True] / n, seen[False] / n


def _n_complete(engine: Engine) -> int:
    with reading(engine) as session:
        return session.scalar(select(func.count()).where(TrialRow.state == "COMPLETE")) or 0


def _machine_cpu_s() -> float:
    """User and system time of everything on this machine."""
    fields = Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]
    return sum(int(fields[place]) for place in (0, 1, 2)) / TICKS
