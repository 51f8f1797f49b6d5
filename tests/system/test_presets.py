"""Each preset carries a small job from its dataset to its end."""

from pathlib import Path

import pytest

from graft import Client
from tests.system.digits import write_digits

SMALL = {"steps": 12, "data.batch_size": 16, "data.resolution": 64}
BUDGETS = {"fast": 7, "balanced": 4, "best": 5}  # trials


@pytest.fixture(scope="module")
def dataset(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = write_digits(tmp_path_factory.mktemp("digits") / "three.zip", [0, 1, 7], per_class=60)
    return client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900).id


@pytest.mark.parametrize("preset", list(BUDGETS))
def test_a_job_of_each_preset_ends_complete(client: Client, dataset: str, preset: str, tmp_path: Path) -> None:
    job = client.jobs.submit(
        dataset, preset=preset, sources=["scratch:smallnet"], space=SMALL, trials=BUDGETS[preset], seed=4
    )
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", (done.error, done.stopped_by)
    assert done.result is not None
    trials = list(client.jobs.trials(done.id))
    if preset == "fast":
        assert "PRUNED" in {t.state for t in trials}, "tried at 32 pixels, and not among the best there"
        assert not done.result.combined
    if preset == "best":
        assert done.result.confirmed, "the best recipes were trained with other seeds too"
    assert client.jobs.download_bundle(done.id, tmp_path).exists()
