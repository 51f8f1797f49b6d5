"""Real photographs and real ImageNet weights, two Celery workers on Postgres and Redis, one of them killed.

Needs the photos and weights that lie beside the repository in `../shared/data`; skipped where they do not.
"""

import io
import json
import os
import signal
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sqlalchemy import select

from store.session import make_engine, reading
from store.tables import LotRow, TrialRow
from tests.system.installation import ROOT, Installation

DATA = ROOT.parent / "shared" / "data"
PHOTOS = DATA / "hymenoptera.zip"
WEIGHTS = DATA / "weights" / "mobilenet_v2_in1k.safetensors"
N_TRIALS = 8

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PHOTOS.exists() and WEIGHTS.exists()), reason=f"no photos and weights in {DATA.name}/"),
]


def test_photos_to_bundle_through_a_killed_worker(distributed: Installation, tmp_path: Path) -> None:
    distributed.start_worker("control")
    doomed = distributed.start_worker("trials")
    distributed.start_worker("trials")
    with distributed.client() as client:
        dataset = client.datasets.wait(client.datasets.upload(PHOTOS, name="ants and bees").id, timeout_s=600)
        source = client.sources.register(WEIGHTS, "mobilenet_v2", name="imagenet")
        job = client.jobs.submit(
            dataset.id, sources=[source.ref], trials=N_TRIALS, n_folds=1, seed=3,
            space={"data.resolution": 128, "steps": {"high": 130}, "data.batch_size": 16,
                   "schedule.freeze.depth": {"low": 4}},
        )  # fmt: skip

        engine = make_engine(distributed.settings["GRAFT_DATABASE_URL"])

        def caught_in_the_act() -> bool:
            """A trial of the doomed worker has reported, and has not ended."""
            running = (
                select(TrialRow.id)
                .join(LotRow, LotRow.id == TrialRow.lot_id)
                .where(TrialRow.state == "RUNNING", TrialRow.share > 0, LotRow.owner.contains(f"-{doomed.pid}-"))
            )
            with reading(engine) as session:
                return session.scalar(running) is not None

        distributed.until(caught_in_the_act, for_s=300)
        engine.dispose()
        os.kill(doomed.pid, signal.SIGKILL)
        doomed.wait()
        distributed.start_worker("trials")

        done = client.jobs.wait(job.id, timeout_s=900)
        assert done.state == "COMPLETE", done.error
        trials = list(client.jobs.trials(job.id))
        assert [t.number for t in trials] == list(range(N_TRIALS))
        assert Counter(t.state in {"COMPLETE", "PRUNED"} for t in trials) == {True: N_TRIALS}
        moves = Counter(
            (e.body["trial_id"], e.body["state"]) for e in client.jobs.past_events(job.id) if e.kind == "trial.state"
        )
        assert any(state == "WAITING" for _, state in moves), "the killed worker's trial went back"
        bundle = zipfile.ZipFile(client.jobs.download_bundle(job.id, tmp_path / "bundle.zip"))
        assert done.result is not None

    correct, n_near, n = answer_the_test_split(bundle, distributed, dataset.id)
    assert n == done.result.n_test
    claimed = round(done.result.test_accuracy.value * n)
    assert abs(correct - claimed) <= n_near
    assert done.result.test_accuracy.value > 0.8, "frozen features alone give 0.87 on this set"


def answer_the_test_split(bundle: zipfile.ZipFile, installation: Installation, dataset_id: str) -> tuple[int, int, int]:
    """(correct answers, near-ties, items) of the bundle's ONNX network on the original test photos."""
    session = onnxruntime.InferenceSession(bundle.read("model.onnx"))
    labels = json.loads(bundle.read("labels.json"))
    names = labels if isinstance(labels, list) else labels["labels"]
    spec = json.loads(bundle.read("preprocessing.json"))
    scope: dict[str, object] = {"__name__": "preprocess"}
    exec(compile(bundle.read("preprocess.py"), "preprocess.py", "exec"), scope)
    items = next((installation.home / "blobs").rglob(f"{dataset_id}/*/items.zip@*"))
    correct = n_near = n = 0
    with zipfile.ZipFile(items) as archive, zipfile.ZipFile(PHOTOS) as original:
        manifest = json.loads(archive.read("manifest.json"))
        for item in manifest["items"]:
            if item["split"] != "test":
                continue
            picture = scope["load_rgb"](io.BytesIO(original.read(item["path"])))  # type: ignore[operator]
            assert isinstance(picture, Image.Image)
            pixels = scope["evaluation_pixels"](picture, spec["resize"], spec["crop"], spec["interpolation"])  # type: ignore[operator]
            logits = session.run(["logits"], {session.get_inputs()[0].name: pixels[None]})[0][0]
            n += 1
            correct += names[int(np.argmax(logits))] == manifest["classes"][item["label"]]
            second, first = np.sort(logits)[-2:]
            n_near += bool(first - second <= 2e-3)
    return correct, n_near, n
