"""Faults on real Postgres, Redis and Celery workers: every accepted job ends, every trial has one result."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select

from graft import Client
from graft.answers import Job, Trial
from store.migrate import migrate
from store.queue import open_doorbell
from store.session import make_engine, reading
from store.settings import Settings
from store.tables import BlobRow, LotRow
from tests.servers import PostgresServer, RedisServer
from tests.system.installation import Installation, children, installed

# Long enough to be cut in the middle on any machine: a few seconds a trial.
SLOW = {"steps": 700, "data.flip": False, "data.batch_size": 32}
FAST = {"steps": 125, "data.flip": False, "data.batch_size": 32}


@pytest.fixture
def fragile(
    tmp_path: Path, postgres_server: PostgresServer, redis_server: RedisServer
) -> Iterator[tuple[Installation, Client]]:
    """Postgres and Redis of this test's own, an API on them, and its client."""
    migrate(postgres_server.url())
    servers = {"GRAFT_DATABASE_URL": postgres_server.url(), "GRAFT_REDIS_URL": redis_server.url}
    # A lease that outlasts the restart of a server, also on a busy machine.
    with installed(tmp_path / "home", GRAFT_LEASE_S="30", **servers) as installation:
        installation.start_api()
        with installation.client() as client:
            yield installation, client


@pytest.fixture
def client(distributed: Installation):  # type: ignore[no-untyped-def]
    with distributed.client() as client:
        yield client


def submit(client: Client, archive: Path, space: dict[str, Any], **wanted: Any) -> Job:
    dataset = client.datasets.upload(archive)
    dataset = client.datasets.wait(dataset.id, timeout_s=900)
    return client.jobs.submit(
        dataset.id, sources=["scratch:smallnet"], space=space, pruner="none", sampler="random", n_folds=1, **wanted
    )


def trials_of(client: Client, job: Job) -> list[Trial]:
    return list(client.jobs.trials(job.id))


def running_worker(installation: Installation, client: Client, job: Job) -> Trial:
    """Wait until a trial has reported from the middle of its budget."""

    def midway() -> Trial | None:
        return next((t for t in trials_of(client, job) if t.state == "RUNNING" and 0 < (t.share or 0) < 0.9), None)

    return installation.until(midway)


def states_of(client: Client, trial: Trial) -> list[str]:
    """The states that a trial went through."""
    return [
        e.body["state"] for e in client.jobs.past_events(trial.job_id)
        if e.kind == "trial.state" and e.body["trial_id"] == trial.id
    ]  # fmt: skip


def no_longer(client: Client, trial: Trial, state: str) -> bool:
    return client.trials.get(trial.id).state != state


def ring_often(installation: Installation, job: Job) -> None:
    """Every message of a job, ten times."""
    bell = open_doorbell(Settings(redis_url=installation.settings["GRAFT_REDIS_URL"], home=installation.home))
    engine = make_engine(installation.settings["GRAFT_DATABASE_URL"])
    with reading(engine) as session:
        lots = list(session.scalars(select(LotRow.id).where(LotRow.job_id == job.id)))
    engine.dispose()
    for handler, row_id in [*(("run_lot", lot) for lot in lots), ("advance", job.id), ("finish_job", job.id)]:
        for _ in range(10):
            bell.wake(handler, row_id)


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    assert worker.wait(timeout=30) == 0


def assert_accounted(client: Client, job: Job, n: int) -> None:
    """Numbers without a gap, one row each, all ended; the history of each trial is told once per point."""
    trials = trials_of(client, job)
    assert [t.number for t in trials] == list(range(n))
    assert Counter(t.state for t in trials) == {"COMPLETE": n}
    for trial in trials:
        steps = [(r.fold, r.phase, r.step) for r in client.trials.curve(trial.id)]
        assert len(steps) == len(set(steps))


def test_two_workers_share_a_job_one_is_killed_and_every_message_comes_many_times(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    distributed.start_worker("control")
    workers = [distributed.start_worker("trials") for _ in range(2)]
    job = submit(client, two_digits, SLOW, trials=3, parallel=2)
    running_worker(distributed, client, job)
    ring_often(distributed, job)
    offspring = children(workers[0].pid)
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].wait()
    distributed.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in offspring), for_s=15)
    distributed.start_worker("trials")
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", done.error
    assert_accounted(client, job, 3)
    states = [e.body["state"] for e in client.jobs.past_events(job.id) if e.kind == "job.state"]
    assert states == ["WAITING", "PROBING", "RUNNING", "FINISHING", "COMPLETE"]


def test_a_killed_trial_process_is_replaced_until_its_trial_has_cost_too_many(
    tmp_path: Path, postgres_url: str, redis_url: str, two_digits: Path
) -> None:
    servers = {"GRAFT_DATABASE_URL": postgres_url, "GRAFT_REDIS_URL": redis_url}
    with installed(tmp_path / "home", GRAFT_MAX_ATTEMPTS="2", GRAFT_ASK_AHEAD_BELOW_S="0", **servers) as installation:
        installation.start_api()
        worker = installation.start_worker()
        with installation.client() as client:
            job = submit(client, two_digits, SLOW, trials=2)
            for _ in range(2):
                trial = running_worker(installation, client, job)
                assert trial.number == 0
                for pid in children(worker.pid):
                    os.kill(pid, signal.SIGKILL)
                installation.until(partial(no_longer, client, trial, "RUNNING"))
            done = client.jobs.wait(job.id, timeout_s=600)
            assert done.state == "COMPLETE", done.error
            assert worker.poll() is None
            poison, survivor = trials_of(client, job)
            assert states_of(client, poison) == ["RUNNING", "WAITING", "RUNNING", "FAILED"]
            assert states_of(client, survivor) == ["RUNNING", "COMPLETE"]
            assert poison.error is not None
            assert poison.error["code"] == "out_of_memory"
            assert "SIGKILL; tried 2 times" in poison.error["detail"]


def test_sigterm_saves_a_resume_point_and_a_damaged_one_means_starting_over(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    worker = distributed.start_worker()
    job = submit(client, two_digits, {**SLOW, "steps": 1000}, trials=1)
    trial = running_worker(distributed, client, job)
    stop(worker)
    waiting = client.trials.get(trial.id)
    assert waiting.state == "WAITING"
    reached = waiting.share or 0.0
    worker = distributed.start_worker()
    distributed.until(lambda: (client.trials.get(trial.id).share or 0.0) > reached)
    stop(worker)
    shares = [r.share for r in client.trials.curve(trial.id)]
    assert shares == sorted(set(shares)), "no point of the curve is walked twice"
    assert shares[0] <= reached < shares[-1]
    (resume_point,) = (distributed.home / "blobs").rglob("resume-*")
    with resume_point.open("r+b") as file:
        file.write(b"damaged")
    distributed.start_worker()
    distributed.until(lambda: client.trials.get(trial.id).state == "COMPLETE")
    assert_accounted(client, job, 1)
    client.jobs.cancel(job.id, keep="nothing")  # how it is finished is no matter of this test
    assert states_of(client, trial) == ["RUNNING", "WAITING", "RUNNING", "WAITING", "RUNNING", "COMPLETE"]
    assert "cannot be used" in distributed.log()


def test_training_outlives_a_restart_of_postgres_and_of_redis(
    fragile: tuple[Installation, Client], postgres_server: PostgresServer, redis_server: RedisServer, two_digits: Path
) -> None:
    installation, client = fragile
    installation.start_worker()
    job = submit(client, two_digits, SLOW, trials=2)
    running_worker(installation, client, job)
    postgres_server.kill()
    redis_server.kill()
    time.sleep(0.5)
    postgres_server.start()
    redis_server.start()
    done = client.jobs.wait(job.id, timeout_s=600)
    assert done.state == "COMPLETE", done.error
    assert_accounted(client, job, 2)
    for trial in trials_of(client, job):
        assert states_of(client, trial) == ["RUNNING", "COMPLETE"], "nothing had to be trained twice"


def test_a_worker_that_wakes_up_after_its_lease_writes_nothing(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    distributed.start_worker("control")
    zombie = distributed.start_worker("trials")
    job = submit(client, two_digits, SLOW, trials=1)
    trial = running_worker(distributed, client, job)
    os.kill(zombie.pid, signal.SIGSTOP)
    try:
        distributed.start_worker("trials")
        distributed.until(lambda: states_of(client, trial) == ["RUNNING", "WAITING", "RUNNING"])
    finally:
        os.kill(zombie.pid, signal.SIGCONT)
    done = client.jobs.wait(job.id, timeout_s=600)
    assert done.state == "COMPLETE", done.error
    assert_accounted(client, job, 1)
    assert states_of(client, trial) == ["RUNNING", "WAITING", "RUNNING", "COMPLETE"]
    assert zombie.poll() is None
    assert "stopped work that is no longer ours" in distributed.log()
    engine = make_engine(distributed.settings["GRAFT_DATABASE_URL"])
    with reading(engine) as session:
        kept = list(session.scalars(select(BlobRow.key).where(BlobRow.key.contains(trial.id))))
    engine.dispose()
    assert {key.split("/")[3] for key in kept} == {"2"}, "only what the second fence has put is known"


def test_lost_messages_are_rung_for_again(
    distributed: Installation, client: Client, two_digits: Path, redis_url: str
) -> None:
    job = submit_without_worker(distributed, client, two_digits)
    redis.Redis.from_url(redis_url).flushdb()
    distributed.start_worker()
    done = client.jobs.wait(job.id, timeout_s=600)
    assert done.state == "COMPLETE", done.error


def submit_without_worker(installation: Installation, client: Client, archive: Path) -> Job:
    preparing = installation.start_worker("control")
    job = submit(client, archive, FAST, trials=1)
    preparing.terminate()
    preparing.wait(timeout=30)
    return job


def test_cancel_discards_and_frees_the_trial_process(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    distributed.start_worker()
    job = submit(client, two_digits, SLOW, trials=50)
    trial = running_worker(distributed, client, job)
    cancelled = client.jobs.cancel(job.id, keep="nothing")
    assert cancelled.state == "CANCELLED"
    distributed.until(lambda: client.trials.get(trial.id).state == "CANCELLED", for_s=15)
    distributed.until(lambda: {t.state for t in trials_of(client, job)} <= {"CANCELLED", "COMPLETE"}, for_s=15)
    assert client.jobs.get(job.id).state == "CANCELLED"
