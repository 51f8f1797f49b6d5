"""Budgets on an embedded installation: what cannot be done is said before it costs anything, what ends says why."""

from pathlib import Path

import pytest

from graft import Client
from tests.system.installation import Installation, installed

QUICK_SPACE = {"steps": 60, "data.flip": False, "data.batch_size": [16, 32]}


@pytest.fixture(scope="module")
def dataset(client: Client, two_digits: Path) -> str:
    return client.datasets.wait(client.datasets.upload(two_digits).id, timeout_s=600).id


def test_a_second_is_too_short_for_anything_and_that_is_said_before_a_trial_begins(
    client: Client, dataset: str
) -> None:
    job = client.jobs.submit(dataset, sources=["scratch:smallnet"], wall_s=1.0, space=QUICK_SPACE, n_folds=1)
    done = client.jobs.wait(job.id, timeout_s=900)
    assert (done.state, done.error["code"]) == ("FAILED", "budget_too_small")
    assert "give at least" in done.error["detail"]
    assert list(client.jobs.trials(job.id)) == []


def test_a_target_that_is_easily_reached_ends_the_search(client: Client, dataset: str) -> None:
    job = client.jobs.submit(
        dataset,
        sources=["scratch:smallnet"],
        trials=50,
        target=0.2,
        objectives=["accuracy"],
        space=QUICK_SPACE,
        n_folds=1,
    )
    done = client.jobs.wait(job.id, timeout_s=900)
    assert (done.state, done.stopped_by) == ("COMPLETE", "target"), done.error
    assert done.progress.by_state["COMPLETE"] < 5
    assert done.estimate is not None
    assert min(done.estimate[name] for name in ("s_per_trial", "job_s", "memory_bytes", "disk_bytes")) > 0


def test_a_job_that_no_batch_size_fits_into_memory_fails_before_a_trial_begins(
    two_digits: Path, tmp_path: Path
) -> None:
    """Torch alone takes more than these 50 MB."""
    with installed(tmp_path / "home", GRAFT_DEVICE_MEMORY_BYTES="50000000") as installation:
        job_id = _submitted(installation, two_digits)
        with installation.client() as client:
            done = client.jobs.wait(job_id, timeout_s=900)
            assert (done.state, done.error["code"]) == ("FAILED", "out_of_memory")
            assert "data.batch_size 16 needs more than the 0.1 GB of memory on cpu" in done.error["detail"]
            assert list(client.jobs.trials(job_id)) == []


def _submitted(installation: Installation, pictures: Path) -> str:
    installation.start_api()
    installation.start_worker()
    with installation.client() as client:
        dataset = client.datasets.wait(client.datasets.upload(pictures).id, timeout_s=600)
        return client.jobs.submit(dataset.id, sources=["scratch:smallnet"], trials=3, space=QUICK_SPACE).id
