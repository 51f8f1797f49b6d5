"""What the next trial needs is brought here while another one trains, and nothing of it is claimed."""

from pathlib import Path

from store.tables import DatasetRow, JobRow, LotRow
from tests.system.digits import write_digits
from tests.unit.worker.conftest import Workshop
from worker.advance import advance
from worker.ahead import read_ahead
from worker.claims import Claimed, claim_lot
from worker.files import sandboxed


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
