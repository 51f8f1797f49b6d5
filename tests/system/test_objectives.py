"""Several objectives over REST on an embedded installation: what is measured, who wins, which front is shown."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from graft import Client
from tests.system.digits import write_digits

QUICK = {"steps": {"low": 30, "high": 60}, "data.flip": False, "data.batch_size": 32}


@pytest.fixture(scope="module")
def low_digits(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = write_digits(tmp_path_factory.mktemp("a") / "a.zip", [0, 1, 2], per_class=60)
    return client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900).id


def test_two_objectives_and_a_limit_end_with_a_front(client: Client, low_digits: str, tmp_path: Path) -> None:
    job = client.jobs.submit(
        low_digits, sources=["scratch:smallnet", "scratch:cifar_resnet20"], trials=6, space=QUICK, seed=1, n_folds=1,
        anchors=False, combine=False,  # an anchor may win from behind the front, and an average of trials is none
        objectives=["accuracy", "latency_ms"], limits={"size_bytes": {"at_most": 2e6}},
    )  # fmt: skip
    done = client.jobs.wait(job.id, timeout_s=500)
    assert done.state == "COMPLETE", done.error
    assert done.result is not None
    trials = {t.id: t for t in client.jobs.trials(job.id) if t.state == "COMPLETE"}
    assert len(trials) == 6, "pruning is off"
    asked = ("accuracy", "latency_ms", "size_bytes")
    for trial in trials.values():
        assert trial.metrics is not None
        assert all(trial.metrics[name] > 0 for name in asked)
    by_backbone = {t.recipe["backbone"]: t.metrics for t in trials.values()}
    assert len(by_backbone) == 2, "both networks were tried"
    assert by_backbone["smallnet"]["latency_ms"] < by_backbone["cifar_resnet20"]["latency_ms"]

    front = done.result.front
    assert front
    assert all(point.values == {name: trials[point.trial_id].metrics[name] for name in asked} for point in front)
    (chosen,) = [point for point in front if point.chosen]
    assert chosen.trial_id == done.result.best_trial_id
    assert chosen.values["accuracy"] == max(t.metrics["accuracy"] for t in trials.values())
    weights = load_file(client.trials.download_checkpoint(front[-1].trial_id, tmp_path))
    assert sum(array.nbytes for array in weights.values()) == front[-1].values["size_bytes"]
    assert any("no trial is stopped early" in e.body.get("text", "") for e in client.jobs.past_events(job.id))


def test_a_limit_that_nothing_keeps_is_said_plainly(client: Client, low_digits: str) -> None:
    job = client.jobs.submit(
        low_digits, sources=["scratch:smallnet"], trials=2, space=QUICK, n_folds=1,
        limits={"size_bytes": {"at_most": 1000}},
    )  # fmt: skip
    done = client.jobs.wait(job.id, timeout_s=400)
    assert done.state == "COMPLETE", done.error
    assert done.result is not None
    assert any("No trial keeps the limits (size_bytes at most 1000)" in sentence for sentence in done.result.summary)


def test_what_is_left_of_the_source_is_measured_with_its_own_head(
    client: Client, low_digits: str, tmp_path: Path
) -> None:
    first = client.jobs.submit(
        low_digits, sources=["scratch:cifar_resnet20"], trials=1, space={**QUICK, "steps": 40}, n_folds=1
    )
    source = client.jobs.wait(first.id, timeout_s=400)
    assert source.result is not None, source.error
    archive = write_digits(tmp_path / "b.zip", [7, 8, 9], per_class=30)
    target = client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900)
    job = client.jobs.submit(
        target.id, sources=[source.id], trials=3, space={**QUICK, "steps": 12}, n_folds=1, source_dataset_id=low_digits,
        objectives=["accuracy", "source_accuracy"],
    )  # fmt: skip
    done = client.jobs.wait(job.id, timeout_s=400)
    assert done.state == "COMPLETE", done.error
    by_anchor = {t.anchor: t.metrics for t in client.jobs.trials(job.id)}
    # A linear probe leaves the body as it was: the source's head says what it said on its own job's test split.
    assert by_anchor["linear_probe"]["source_accuracy"] == pytest.approx(source.result.metrics["accuracy"])
    assert all(0 <= metrics["source_accuracy"] <= 1 for metrics in by_anchor.values() if metrics)
