"""A second job on the same data begins where the first one ended: embedded, with real training."""

import pytest

from graft import Client
from graft.answers import Job
from graft.errors import GraftApiError
from tests.system.digits import write_digits

SPACE = {"steps": {"low": 10, "high": 40}, "data.resolution": 32, "data.batch_size": 32, "data.flip": False}


@pytest.fixture(scope="module")
def dataset_id(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    archive = write_digits(tmp_path_factory.mktemp("digits") / "digits.zip", [1, 4, 7], per_class=60)
    return client.datasets.wait(client.datasets.upload(archive).id, timeout_s=600).id


def test_the_next_job_tries_the_best_recipe_of_the_last_one_first(client: Client, dataset_id: str) -> None:
    def ended(seed: int, learn_from: str = "workspace") -> Job:
        job = client.jobs.submit(
            dataset_id, sources=["scratch:smallnet"], trials=5, anchors=False, n_folds=1, combine=False,
            objective="log_loss", pruner="none", space=SPACE, seed=seed, learn_from=learn_from,
        )  # fmt: skip
        done = client.jobs.wait(job.id, timeout_s=900)
        assert done.state == "COMPLETE", done.error
        return done

    first = ended(1)
    assert first.estimate is not None
    meta = first.estimate["meta"]
    assert (meta["n_classes"], meta["resolution"], meta["source"]) == (3, 32, None)
    assert first.spec["warm_starts"] == [], "there is no past to learn from, and no source to know anything"
    best = min(client.jobs.trials(first.id), key=lambda trial: trial.value or 0.0)

    second = ended(2)
    trials = list(client.jobs.trials(second.id))
    assert trials[0].values == best.values == second.spec["warm_starts"][0]["values"]
    assert second.estimate is not None
    told = second.estimate["first_recipes"]
    assert told.startswith("1 recipe from 1 past job is tried first: ")
    assert f"trial {best.number} of {first.id}" in told
    assert any(event.body.get("text") == told for event in client.jobs.past_events(second.id))
    assert all(trial.values != best.values for trial in trials[1:])

    alone = ended(2, "nothing")
    assert alone.spec["warm_starts"] == []
    assert next(iter(client.jobs.trials(alone.id))).values != best.values


def test_other_workspaces_pasts_are_refused_where_they_are_kept_apart(client: Client, dataset_id: str) -> None:
    with pytest.raises(GraftApiError) as refused:
        client.jobs.submit(dataset_id, sources=["scratch:smallnet"], trials=5, learn_from="installation")
    assert (refused.value.status, refused.value.code) == (422, "history_not_pooled")
    assert "GRAFT_POOL_HISTORY" in str(refused.value)
