"""The whole way over REST on an embedded installation: SQLite, a local folder, one worker."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from graft import Client
from graft.errors import GraftApiError
from tests.system.digits import write_digits
from tests.system.installation import Installation, installed

QUICK_SPACE = {"steps": {"high": 250}, "data.flip": False, "data.batch_size": 32}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with installed(tmp_path_factory.mktemp("embedded") / "home") as installation:
        installation.start_api()
        installation.start_worker()
        yield installation


@pytest.fixture(scope="module")
def client(service: Installation):  # type: ignore[no-untyped-def]
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def source_job(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished job from scratch on digits 0-4."""
    archive = write_digits(tmp_path_factory.mktemp("a") / "a.zip", [0, 1, 2, 3, 4], per_class=80)
    dataset = client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900)
    job = client.jobs.submit(dataset.id, sources=["scratch:smallnet"], trials=2, space=QUICK_SPACE, seed=1)
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", done.error
    return done.id


def test_a_job_from_scratch_ends_with_an_account(client: Client, source_job: str) -> None:
    job = client.jobs.get(source_job)
    assert job.result is not None
    assert job.stopped_by == "trials"
    assert job.progress.trials_done == 2
    assert [t.anchor for t in client.jobs.trials(job.id)] == ["scratch", None]
    assert job.result.test_accuracy.low <= job.result.test_accuracy.value <= job.result.test_accuracy.high
    assert job.result.test_accuracy.value > 0.5, "five digits, 80 of each: chance is 0.2"
    assert job.estimate is not None
    assert job.estimate["s_per_trial"] > 0


def test_what_frozen_stages_make_of_val_is_kept_wherever_the_job_may_cut(
    service: Installation, client: Client, source_job: str, tmp_path: Path
) -> None:
    """One trial, a linear probe: on its way through all stages it passes the cuts of the others."""
    archive = write_digits(tmp_path / "c.zip", [5, 6, 7], per_class=40)
    dataset = client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900)
    space = {**QUICK_SPACE, "schedule": "freeze", "schedule.freeze.depth": {"low": 1, "high": 2}}
    job = client.jobs.submit(dataset.id, sources=[source_job], trials=1, n_folds=1, space=space, seed=3)
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", done.error
    facts = [json.loads(file.read_text("utf-8")) for file in service.home.rglob("activations/*/facts.json")]
    assert {found["of"]["depth"] for found in facts} == {1, 2, 3}


def test_its_checkpoint_is_the_source_of_another_job_and_the_bundle_predicts(
    client: Client, source_job: str, tmp_path: Path
) -> None:
    archive = write_digits(tmp_path / "b.zip", [5, 6, 7, 8, 9], per_class=60)
    dataset = client.datasets.upload(archive, options={"n_labelled_per_class": 10})
    dataset = client.datasets.wait(dataset.id, timeout_s=900)
    assert dataset.statistics is not None
    per_split = dataset.statistics["per_split"]
    assert per_split["train"] + per_split["val"] == 50
    job = client.jobs.submit(
        dataset.id, sources=[source_job], trials=7, space=QUICK_SPACE, seed=2, confirm={"top": 1, "seeds": 1}
    )
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", done.error
    assert done.result is not None
    assert done.result.n_test == 250
    (confirmed,) = done.result.confirmed
    assert len(confirmed.values) == 2
    assert done.result.summary[0].startswith("7 trials were started")
    assert {a.name for a in done.result.anchors} == {"linear_probe", "fine_tuning", "l2_sp"}
    assert done.result.export["largest_difference"] <= 1e-3

    bundle = tmp_path / "bundle"
    with zipfile.ZipFile(client.jobs.download_bundle(job.id, tmp_path / "bundle.zip")) as archived:
        archived.extractall(bundle)
    with zipfile.ZipFile(archive) as pictures:
        (tmp_path / "seven.png").write_bytes(pictures.read(next(n for n in pictures.namelist() if n.startswith("7/"))))
    said = subprocess.run(
        [sys.executable, str(bundle / "predict.py"), str(tmp_path / "seven.png"), "--json"],
        check=True, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert "7" in json.dumps(json.loads(said.stdout))

    waiting = client.jobs.submit(dataset.id, sources=[source_job], trials=1)
    with pytest.raises(GraftApiError) as refused:
        client.datasets.delete(dataset.id)
    assert (refused.value.status, refused.value.facts["needed_by"]) == (409, [waiting.id])
    with pytest.raises(GraftApiError) as refused:
        client.jobs.delete(source_job)
    assert (refused.value.status, refused.value.facts["needed_by"]) == (409, [waiting.id])
    client.jobs.cancel(waiting.id, keep="nothing")


def test_events_tell_the_whole_story_and_polling_tells_the_same(client: Client, source_job: str) -> None:
    streamed = list(client.jobs.events(source_job))
    polled = list(client.jobs.past_events(source_job))
    assert [(e.seq, e.kind, e.body) for e in streamed] == [(e.seq, e.kind, e.body) for e in polled]
    assert [e.seq for e in streamed] == list(range(1, len(streamed) + 1))
    states = [e.body["state"] for e in streamed if e.kind == "job.state"]
    assert states == ["WAITING", "PROBING", "RUNNING", "FINISHING", "COMPLETE"]
    assert streamed[-1].ends_job
    later = list(client.jobs.events(source_job, after=streamed[2].seq))
    assert [e.seq for e in later] == [e.seq for e in streamed[3:]]


def test_pause_resume_and_cancel_with_the_best(client: Client, service: Installation, tmp_path: Path) -> None:
    archive = write_digits(tmp_path / "c.zip", [6, 8], per_class=40)
    dataset = client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900)
    job = client.jobs.submit(
        dataset.id, sources=["scratch:smallnet"], trials=500, space={**QUICK_SPACE, "steps": 250}, pruner="none"
    )
    service.until(lambda: client.jobs.get(job.id).best)
    client.jobs.pause(job.id)
    service.until(lambda: not client.jobs.get(job.id).progress.by_state.get("RUNNING"))
    paused = client.jobs.get(job.id)
    assert paused.state == "PAUSED"
    n_done = paused.progress.trials_done
    client.jobs.resume(job.id)
    service.until(lambda: client.jobs.get(job.id).progress.trials_done > n_done)
    client.jobs.cancel(job.id, keep="best")
    done = client.jobs.wait(job.id, timeout_s=600)
    assert (done.state, done.stopped_by) == ("COMPLETE", "user"), done.error
    assert done.result is not None
    client.jobs.delete(job.id)
    client.datasets.delete(dataset.id)
    assert not [k for k in (service.home / "blobs").rglob("*") if dataset.id in str(k) and k.is_file()]


def test_a_budget_of_time_ends_the_search(client: Client, tmp_path: Path) -> None:
    archive = write_digits(tmp_path / "d.zip", [1, 2], per_class=40)
    dataset = client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900)
    job = client.jobs.submit(dataset.id, sources=["scratch:smallnet"], wall_s=60, trials=1000, space=QUICK_SPACE)
    done = client.jobs.wait(job.id, timeout_s=900)
    assert (done.state, done.stopped_by) == ("COMPLETE", "time"), done.error
    assert done.elapsed_s is not None
    assert done.elapsed_s < 60 + 15


def test_a_distilled_job_learns_from_a_teacher_with_the_same_classes(
    client: Client, source_job: str, tmp_path: Path
) -> None:
    dataset_id = client.jobs.get(source_job).dataset_id
    job = client.jobs.submit(
        dataset_id, sources=["scratch:smallnet"], teacher=source_job, trials=2, anchors=False,
        space={**QUICK_SPACE, "distillation": "soft_targets", "steps": 130},
    )  # fmt: skip
    done = client.jobs.wait(job.id, timeout_s=600)
    assert done.state == "COMPLETE", done.error
    trials = list(client.jobs.trials(job.id))
    assert {t.recipe["distillation"]["name"] for t in trials} == {"soft_targets"}


def test_a_job_learns_from_its_own_best_trial(client: Client, source_job: str) -> None:
    """Teacher `best` and soft targets: the anchors run untaught, then every trial learns from the best of the job."""
    dataset_id = client.jobs.get(source_job).dataset_id
    job = client.jobs.submit(
        dataset_id, sources=["scratch:smallnet"], teacher="best", trials=3, n_folds=1, pruner="none",
        space={**QUICK_SPACE, "distillation": "soft_targets", "steps": 130},
    )  # fmt: skip
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", done.error
    anchor, *taught = client.jobs.trials(job.id)
    assert (anchor.anchor, anchor.recipe["distillation"], anchor.teachers) == ("scratch", None, ())
    assert [t.recipe["distillation"]["name"] for t in taught] == ["soft_targets"] * 2
    assert taught[0].teachers == (anchor.id,)
    before = {t.id: t for t in (anchor, taught[0])}
    assert done.spec["objective"] in ("log_loss", "accuracy")
    better = min if done.spec["objective"] == "log_loss" else max
    best = better(before.values(), key=lambda t: t.value or 0.0)
    assert taught[1].teachers in {(best.id,), (anchor.id,)}, "it may have been claimed while the one before it ended"
    assert all(t.state == "COMPLETE" for t in (anchor, *taught))


def test_an_ensemble_of_its_own_trials_teaches_and_its_sources_are_ranked(client: Client, source_job: str) -> None:
    dataset_id = client.jobs.get(source_job).dataset_id
    second = client.jobs.submit(
        dataset_id, sources=["scratch:smallnet"], trials=1, n_folds=1, space={**QUICK_SPACE, "steps": 60}, seed=5
    )
    assert client.jobs.wait(second.id, timeout_s=600).state == "COMPLETE"
    job = client.jobs.submit(
        dataset_id, sources=[source_job, second.id], teacher="ensemble", trials=4, n_folds=1,
        space={**QUICK_SPACE, "distillation": "soft_targets", "steps": 60},
    )  # fmt: skip
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", done.error
    assert done.estimate is not None
    ranking = done.estimate["ranking"]
    assert [entry["rank"] for entry in ranking] == [1, 2]
    assert {entry["source"] for entry in ranking} == {source_job, second.id}
    assert done.estimate["ranks_first"] == ranking[0]["source"]
    assert ranking[0]["mean_rank"] <= ranking[1]["mean_rank"]
    assert {"logme", "leep", "h_score", "knn"} <= set(done.estimate["ranked_by"])
    assert ranking[0]["scores"]["knn"] > 0.5, "features of a network that was trained on these very digits"
    *anchors, taught = client.jobs.trials(job.id)
    assert len(anchors) == 3
    assert set(taught.teachers) == {t.id for t in anchors}


def test_a_registered_source_is_fine_tuned_first_and_then_teaches(
    client: Client, source_job: str, tmp_path: Path
) -> None:
    done = client.jobs.get(source_job)
    assert done.result is not None
    weights = client.trials.download_checkpoint(done.result.best_trial_id, tmp_path / "weights.safetensors")
    source = client.sources.register(weights, backbone="smallnet", name="digits")
    job = client.jobs.submit(
        done.dataset_id, sources=["scratch:smallnet"], teacher=source.ref, trials=3, n_folds=1,
        space={**QUICK_SPACE, "distillation": "soft_targets", "steps": 60},
    )  # fmt: skip
    with pytest.raises(GraftApiError) as refused:
        client.sources.delete(source.ref)
    assert refused.value.code == "still_needed"
    done = client.jobs.wait(job.id, timeout_s=900)
    assert done.state == "COMPLETE", done.error
    scratch, teacher, taught = client.jobs.trials(job.id)
    assert (scratch.anchor, teacher.anchor, taught.anchor) == ("scratch", "teacher", None)
    assert (teacher.recipe["source"], teacher.recipe["steps"]) == (source.ref, 60)
    assert taught.teachers == (teacher.id,)
    assert done.result is not None
    assert done.result.best_trial_id in {scratch.id, taught.id}
    assert [a.name for a in done.result.anchors] == ["scratch"]
    assert done.estimate is not None
    assert done.estimate["teacher"]["source"] == source.ref
