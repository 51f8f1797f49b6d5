"""Faults on real Postgres, Redis and Celery workers: every accepted job ends, every trial has one result."""

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from graft import Client
from graft.answers import Job, Trial
from tests.system.installation import Installation, children

# Long enough to be cut in the middle on any machine: about six seconds a trial.
SLOW = {"steps": 2000, "data.flip": False, "data.batch_size": 32}
FAST = {"steps": 125, "data.flip": False, "data.batch_size": 32}


@pytest.fixture
def client(distributed: Installation):  # type: ignore[no-untyped-def]
    with distributed.client() as client:
        yield client


def submit(client: Client, archive: Path, space: dict[str, Any], **wanted: Any) -> Job:
    dataset = client.datasets.upload(archive)
    dataset = client.datasets.wait(dataset.id, timeout_s=60)
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


def assert_accounted(client: Client, job: Job, n: int) -> None:
    """Numbers without a gap, one row each, all ended; the history of each trial is told once per point."""
    trials = trials_of(client, job)
    assert [t.number for t in trials] == list(range(n))
    assert Counter(t.state for t in trials) == {"COMPLETE": n}
    for trial in trials:
        steps = [(r.fold, r.phase, r.step) for r in client.trials.curve(trial.id)]
        assert len(steps) == len(set(steps))


def test_two_workers_share_a_job_and_one_is_killed_in_the_middle_of_a_trial(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    distributed.start_worker("control")
    workers = [distributed.start_worker("trials") for _ in range(2)]
    job = submit(client, two_digits, SLOW, trials=4, parallel=2)
    running_worker(distributed, client, job)
    offspring = children(workers[0].pid)
    os.kill(workers[0].pid, signal.SIGKILL)
    workers[0].wait()
    distributed.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in offspring), for_s=15)
    distributed.start_worker("trials")
    done = client.jobs.wait(job.id, timeout_s=240)
    assert done.state == "COMPLETE", done.error
    assert_accounted(client, job, 4)


def test_a_killed_trial_process_is_replaced_and_its_trial_goes_on(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    worker = distributed.start_worker()
    job = submit(client, two_digits, SLOW, trials=1)
    trial = running_worker(distributed, client, job)
    for pid in children(worker.pid):
        os.kill(pid, signal.SIGKILL)
    done = client.jobs.wait(job.id, timeout_s=120)
    assert done.state == "COMPLETE", done.error
    assert worker.poll() is None
    states = [
        e.body["state"] for e in client.jobs.past_events(job.id)
        if e.kind == "trial.state" and e.body["trial_id"] == trial.id
    ]  # fmt: skip
    assert states == ["RUNNING", "WAITING", "RUNNING", "COMPLETE"]


def test_sigterm_saves_a_resume_point_and_the_next_worker_goes_on_from_it(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    first = distributed.start_worker()
    job = submit(client, two_digits, SLOW, trials=1)
    trial = running_worker(distributed, client, job)
    reached = client.trials.get(trial.id).share or 0.0
    first.terminate()
    assert first.wait(timeout=30) == 0
    waiting = client.trials.get(trial.id)
    assert waiting.state == "WAITING"
    distributed.start_worker()
    done = client.jobs.wait(job.id, timeout_s=120)
    assert done.state == "COMPLETE", done.error
    curve = client.trials.curve(trial.id)
    shares = [r.share for r in curve]
    assert shares == sorted(set(shares)), "no point of the curve is walked twice"
    assert sum(share <= reached for share in shares) >= 1


def test_lost_messages_are_rung_for_again(
    distributed: Installation, client: Client, two_digits: Path, redis_url: str
) -> None:
    job = submit_without_worker(distributed, client, two_digits)
    redis.Redis.from_url(redis_url).flushdb()
    distributed.start_worker()
    done = client.jobs.wait(job.id, timeout_s=120)
    assert done.state == "COMPLETE", done.error


def submit_without_worker(installation: Installation, client: Client, archive: Path) -> Job:
    preparing = installation.start_worker("control")
    job = submit(client, archive, FAST, trials=1)
    preparing.terminate()
    preparing.wait(timeout=30)
    return job


def test_a_message_delivered_many_times_runs_a_lot_once(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    from store.queue import open_doorbell
    from store.settings import Settings

    distributed.start_worker("control")
    for _ in range(2):
        distributed.start_worker("trials")
    job = submit(client, two_digits, SLOW, trials=1)
    running_worker(distributed, client, job)
    bell = open_doorbell(Settings(redis_url=distributed.settings["GRAFT_REDIS_URL"], home=distributed.home))
    for event in client.jobs.past_events(job.id):
        if event.kind == "trial.created":
            for _ in range(10):
                bell.wake("advance", job.id)
                bell.wake("finish_job", job.id)
    done = client.jobs.wait(job.id, timeout_s=120)
    assert done.state == "COMPLETE", done.error
    assert_accounted(client, job, 1)
    states = [e.body["state"] for e in client.jobs.past_events(job.id) if e.kind == "job.state"]
    assert states == ["WAITING", "PROBING", "RUNNING", "FINISHING", "COMPLETE"]


def test_cancel_discards_and_frees_the_trial_process(
    distributed: Installation, client: Client, two_digits: Path
) -> None:
    distributed.start_worker()
    job = submit(client, two_digits, {**SLOW, "steps": 2000}, trials=50)
    trial = running_worker(distributed, client, job)
    cancelled = client.jobs.cancel(job.id, keep="nothing")
    assert cancelled.state == "CANCELLED"
    distributed.until(lambda: client.trials.get(trial.id).state == "CANCELLED", for_s=15)
    assert {t.state for t in trials_of(client, job)} <= {"CANCELLED", "COMPLETE"}
    assert client.jobs.get(job.id).state == "CANCELLED"
