"""Files for an order: a resume point that is gone or damaged means starting over, a store that is away does not."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from domain.catalogue import PartFacts, catalogue
from domain.errors import Invalid, Unavailable
from domain.recipe import DataTreatment, Part, Recipe
from domain.space import Choice
from intake.packs import open_pack
from store.s3_blobs import S3Blobs
from tests.servers import free_port
from tests.system.digits import write_digits
from tests.unit.worker.conftest import Workshop
from worker import files
from worker.files import fetch_folder, sandboxed, source_pack

KEY = "ws_1/trials/tr_1/1/resume-tr_1-last.zip"


@pytest.fixture
def stored(place: Workshop, tmp_path: Path) -> Workshop:
    with zipfile.ZipFile(tmp_path / "point.zip", "w") as archive:
        archive.writestr("state.json", "{}")
    place.context.blobs.put(KEY, tmp_path / "point.zip")
    return place


def test_a_resume_point_is_unpacked(stored: Workshop, tmp_path: Path) -> None:
    folder = fetch_folder(stored.context, KEY, tmp_path / "scratch" / "resume")
    assert folder is not None
    assert (Path(folder) / "state.json").read_text() == "{}"


def test_one_that_is_gone_or_damaged_is_none(stored: Workshop, tmp_path: Path) -> None:
    assert fetch_folder(stored.context, KEY.replace("tr_1", "tr_2"), tmp_path / "scratch" / "resume") is None
    (file,) = (stored.context.settings.home / "blobs").rglob("resume-*")
    file.write_bytes(file.read_bytes()[:-5] + b"wrong")
    assert fetch_folder(stored.context, KEY, tmp_path / "scratch" / "resume") is None
    stored.context.blobs.put(KEY, Path(__file__))  # whole, and no archive
    assert fetch_folder(stored.context, KEY, tmp_path / "scratch" / "resume") is None


def test_a_blob_store_that_is_away_is_no_reason_to_start_over(
    stored: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    away = S3Blobs("s3://bucket", endpoint_url=f"http://127.0.0.1:{free_port()}", region="us-east-1")
    with pytest.raises(Unavailable, match="blobs_unavailable"):
        fetch_folder(replace(stored.context, blobs=away), KEY, tmp_path / "scratch" / "resume")


def test_the_source_dataset_is_packed_where_a_part_learns_from_it(
    place: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the recipe's own resolution; a part that learns from it with one value of a param only counts with that."""
    either = Choice(options=("target", "source"), default="target")
    joint = PartFacts(slot="sampling", name="joint", summary="", needs=("source_data",))
    fisher = PartFacts(slot="regularizer", name="fisher", summary="", space={"data": either},
                       needs_by={"data": {"source": "source_data"}})  # fmt: skip
    known = catalogue().model_copy(update={"parts": (joint, fisher)})
    monkeypatch.setattr(files, "catalogue", lambda: known)
    archive = write_digits(tmp_path / "digits.zip", [0, 1], per_class=20)
    sandboxed(["prepare", str(archive), str(tmp_path / "items.zip"), "--task", "classification", "--options", "{}"])
    key = "ws_1/datasets/ds_1/1/items.zip"
    place.context.blobs.put(key, tmp_path / "items.zip")
    plain = Recipe(task="classification", source="scratch:smallnet", backbone="smallnet",
                   data=DataTreatment(resolution=32))  # fmt: skip

    def pack_of(items_blob: str | None, **parts: Part) -> str | None:
        return source_pack(place.context, items_blob, plain.model_copy(update=dict(parts)))

    assert pack_of(key) is None
    assert pack_of(key, regularizer=Part(name="fisher")) is None
    assert pack_of(None, sampling=Part(name="joint")) is None
    found = pack_of(key, sampling=Part(name="joint"))
    assert found is not None
    assert pack_of(key, regularizer=Part(name="fisher", params={"data": "source"})) == found
    pack = open_pack(Path(found))
    assert (len(pack.classes), len(pack.labels), pack.crop) == (2, 40, 32)


def test_a_sandbox_that_cannot_read_its_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"no archive")
    with pytest.raises(Invalid):
        sandboxed(["prepare", str(tmp_path / "upload"), str(tmp_path / "items.zip"), "--task", "classification",
                   "--options", "{}"])  # fmt: skip
