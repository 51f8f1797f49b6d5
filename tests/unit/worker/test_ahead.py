"""What the next trial needs is brought here while another one trains, and nothing of it is claimed."""

import zipfile
from pathlib import Path

import pytest

from domain.errors import Unavailable
from domain.lot import SourceFiles
from store.tables import DatasetRow, JobRow, LotRow, TrialRow
from tests.system.digits import write_digits
from tests.unit.worker.conftest import Workshop
from worker.advance import advance
from worker.ahead import read_ahead
from worker.claims import Claimed, claim_lot
from worker.files import fetch_folder, fetch_weights, sandboxed


def two_trials(place: Workshop, tmp_path: Path) -> Claimed:
    """The first trial of a job, claimed; one more was asked ahead."""
    archive = write_digits(tmp_path / "digits.zip", [0, 1], per_class=20)
    sandboxed(["prepare", str(archive), str(tmp_path / "items.zip"), "--task", "classification", "--options", "{}"])
    job_id = place.job(overrides={"data.resolution": 64}, parallel=2)
    with place.context.reading() as session:
        job = session.get_one(JobRow, job_id)
    key = f"{job.workspace_id}/datasets/{job.dataset_id}/1/items.zip"
    place.context.blobs.put(key, tmp_path / "items.zip")
    place.write(DatasetRow, job.dataset_id, items_blob=key)
    advance(place.context, job_id)
    first, _ = place.trials(job_id)[:2]
    claimed = claim_lot(place.context, first.lot_id)
    assert claimed is not None
    return claimed


def packs(place: Workshop) -> list[str]:
    return sorted(file.parent.name for file in place.context.cache.rglob("pack.json"))


def test_the_pack_of_the_next_trial_is_built_and_the_trial_left_alone(place: Workshop, tmp_path: Path) -> None:
    claimed = two_trials(place, tmp_path)
    assert packs(place) == []
    read_ahead(place.context, claimed).join(60)
    assert packs(place) == ["pack"]
    _, second = place.trials(claimed.job_id)[:2]
    with place.context.reading() as session:
        lot = session.get_one(LotRow, second.lot_id)
        assert (second.state, lot.state, lot.owner) == ("WAITING", "WAITING", None)


def test_data_that_cannot_be_packed_are_for_the_trial_itself_to_report(place: Workshop, tmp_path: Path) -> None:
    claimed = two_trials(place, tmp_path)
    place.context.blobs.put(claimed.items_blob, tmp_path / "digits.zip")  # no prepared items
    read_ahead(place.context, claimed).join(60)
    assert packs(place) == []
    _, second = place.trials(claimed.job_id)[:2]
    assert second.state == "WAITING"


def test_where_the_next_trial_was_paused_is_brought_here(place: Workshop, tmp_path: Path) -> None:
    """Until whoever claims it unpacks it."""
    claimed = two_trials(place, tmp_path)
    _, second = place.trials(claimed.job_id)[:2]
    key = f"{claimed.workspace_id}/trials/{second.id}/1/resume-last.zip"
    with zipfile.ZipFile(tmp_path / "point.zip", "w") as archive:
        archive.writestr("state.json", "{}")
    place.context.blobs.put(key, tmp_path / "point.zip")
    place.write(TrialRow, second.id, resume_blob=key)
    read_ahead(place.context, claimed).join(60)
    (fetched,) = (place.context.cache / claimed.workspace_id / "resume").iterdir()
    assert fetched.read_bytes() == (tmp_path / "point.zip").read_bytes()
    folder = fetch_folder(place.context, key, tmp_path / "scratch" / "resume")
    assert (Path(str(folder)) / "state.json").read_text() == "{}"
    assert not fetched.exists()


def test_weights_that_torchvision_publishes_are_brought_by_a_process_that_has_torch(
    place: Workshop, tmp_path: Path
) -> None:
    """Where they are, nothing is fetched; where they cannot be had, the trial itself reports it."""
    there = place.context.settings.weights / "resnet18.safetensors"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"of another time")
    fetch_weights(place.context, SourceFiles(weights="torchvision:resnet18"))
    fetch_weights(place.context, SourceFiles(weights=str(tmp_path / "own.safetensors")))
    fetch_weights(place.context, SourceFiles(weights=None))
    assert list(there.parent.iterdir()) == [there]
    with pytest.raises(Unavailable, match="publishes no weights for smallnet"):
        fetch_weights(place.context, SourceFiles(weights="torchvision:smallnet"))
