import base64
import hashlib
import os
from itertools import pairwise
from typing import Any

import httpx2
import pytest

from api import tus
from store.session import reading, transaction
from store.tables import UploadRow
from store.uploads import lock_upload
from tests.house import House, a_zip, check_problem

TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream"}
DATA = a_zip()


def metadata(**pairs: str) -> str:
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())


def begin(house: House, data: bytes = DATA, **pairs: str) -> httpx2.Response:
    headers = TUS | {"Upload-Length": str(len(data)), "Upload-Metadata": metadata(**pairs)}
    answer = house.ask("POST", "/v1/uploads", headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["upload-offset"] == "0"
    return answer


def send(house: House, place: str, offset: int, data: bytes, **more: str) -> httpx2.Response:
    return house.ask("PATCH", place, headers=PART | {"Upload-Offset": str(offset)} | more, content=data)


def offset_of(house: House, place: str) -> int:
    answer = house.ask("HEAD", place, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def test_options_says_what_is_spoken_without_a_key(house: House) -> None:
    answer = house.client.options("/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) == {"creation", "checksum", "expiration", "termination"}
    assert "sha1" in answer.headers["tus-checksum-algorithm"].split(",")
    assert int(answer.headers["tus-max-size"]) == house.site.settings.max_upload_bytes


def test_parts_make_a_whole(house: House, bell: Any) -> None:
    sha256 = hashlib.sha256(DATA).hexdigest()
    begun = begin(house, filename="photos.zip", options='{"seed": 5}', sha256=sha256)
    place, dataset = begun.headers["location"], begun.headers["graft-dataset-id"]
    assert house.ask("GET", f"/v1/datasets/{dataset}").json()["state"] == "UPLOADING"
    cuts = [0, 1, 30, 31, len(DATA)]
    for start, end in pairwise(cuts):
        assert offset_of(house, place) == start
        answer = send(house, place, start, DATA[start:end])
        assert answer.status_code == 204, answer.text
        assert answer.headers["upload-offset"] == str(end)
    assert answer.headers["graft-dataset-id"] == dataset
    shown = house.ask("GET", f"/v1/datasets/{dataset}").json()
    assert (shown["state"], shown["name"], shown["sha256"]) == ("CHECKING", "photos.zip", sha256)
    assert shown["options"] == {"seed": 5}
    assert bell.wait(5) == [("prepare_dataset", dataset)]
    assert b"".join(house.site.blobs.read(f"{house.workspace_id}/datasets/{dataset}/upload")) == DATA
    assert list(house.site.uploads.iterdir()) == []
    again = send(house, place, len(DATA), b"")  # finished twice: the same answer
    assert (again.status_code, again.headers["upload-offset"]) == (204, str(len(DATA)))
    assert offset_of(house, place) == len(DATA)


def test_metadata_comes_back(house: House) -> None:
    place = begin(house, name="Blumen ä", task="classification").headers["location"]
    answer = house.ask("HEAD", place, headers=TUS)
    assert tus.read_metadata(answer.headers["upload-metadata"]) == {"name": "Blumen ä", "task": "classification"}
    assert answer.headers["upload-length"] == str(len(DATA))
    assert answer.headers["upload-expires"].endswith(" GMT")


def test_wrong_offset_is_a_conflict_that_names_the_right_one(house: House) -> None:
    place = begin(house).headers["location"]
    send(house, place, 0, DATA[:10])
    for offset in (0, 9, 11, len(DATA)):
        assert check_problem(send(house, place, offset, b"x"), 409, "upload_offset_conflict")["offset"] == 10
    assert offset_of(house, place) == 10


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_part_with_a_wrong_checksum_is_not_kept(house: House, algorithm: str) -> None:
    place = begin(house).headers["location"]
    digest = base64.b64encode(hashlib.new(algorithm, DATA[:10]).digest()).decode()
    bad = send(house, place, 0, b"0123456789", **{"Upload-Checksum": f"{algorithm} {digest}"})
    check_problem(bad, 460, "chunk_checksum_mismatch")
    assert offset_of(house, place) == 0
    good = send(house, place, 0, DATA[:10], **{"Upload-Checksum": f"{algorithm} {digest}"})
    assert good.status_code == 204
    assert (house.site.uploads / place.rpartition("/")[2]).read_bytes() == DATA[:10]


@pytest.mark.parametrize("given", ["md5 AAAA", "sha256", "sha256 !", "sha256 AAAA"])
def test_checksums_that_cannot_be_read(house: House, given: str) -> None:
    place = begin(house).headers["location"]
    check_problem(send(house, place, 0, DATA, **{"Upload-Checksum": given}), 400, "bad_checksum")


def test_wrong_checksum_of_the_whole_rejects_the_dataset(house: House) -> None:
    begun = begin(house, sha256="0" * 64)
    place, dataset = begun.headers["location"], begun.headers["graft-dataset-id"]
    check_problem(send(house, place, 0, DATA), 422, "checksum_mismatch")
    shown = house.ask("GET", f"/v1/datasets/{dataset}").json()
    assert (shown["state"], shown["error"]["code"]) == ("REJECTED", "checksum_mismatch")
    assert house.ask("HEAD", place, headers=TUS).status_code == 404
    assert list(house.site.uploads.iterdir()) == []
    assert list(house.site.blobs.keys()) == []


def test_more_than_was_announced_is_cut_off(house: House) -> None:
    place = begin(house).headers["location"]
    send(house, place, 0, DATA[:10])
    check_problem(send(house, place, 10, DATA), 400, "upload_exceeds_length")
    assert offset_of(house, place) == 10
    assert send(house, place, 10, DATA[10:]).status_code == 204


def test_bytes_behind_the_committed_offset_are_cut_off(house: House) -> None:
    """As a server leaves them that was killed between the bytes and the commit."""
    begun = begin(house)
    place = begun.headers["location"]
    send(house, place, 0, DATA[:10])
    with (house.site.uploads / place.rpartition("/")[2]).open("ab") as file:
        file.write(b"garbage")
    assert offset_of(house, place) == 10
    assert send(house, place, 10, DATA[10:]).status_code == 204
    dataset = begun.headers["graft-dataset-id"]
    assert b"".join(house.site.blobs.read(f"{house.workspace_id}/datasets/{dataset}/upload")) == DATA


def test_offset_never_promises_what_is_not_on_disk(house: House) -> None:
    place = begin(house).headers["location"]
    send(house, place, 0, DATA[:10])
    os.truncate(house.site.uploads / place.rpartition("/")[2], 4)
    assert offset_of(house, place) == 4
    assert send(house, place, 4, DATA[4:]).status_code == 204


def test_one_writer_at_a_time(house: House) -> None:
    place = begin(house).headers["location"]
    upload = place.rpartition("/")[2]
    with transaction(house.site.engine) as session:
        assert lock_upload(session, upload, 60)
    answer = send(house, place, 0, DATA)
    check_problem(answer, 423, "upload_locked")
    assert int(answer.headers["retry-after"]) >= 1
    check_problem(house.ask("DELETE", place, headers=TUS), 423, "upload_locked")


def test_the_lock_is_given_back_after_a_failure(house: House) -> None:
    place = begin(house).headers["location"]
    send(house, place, 0, DATA + b"!")
    with reading(house.site.engine) as session:
        assert session.get_one(UploadRow, place.rpartition("/")[2]).locked_until == 0
    assert send(house, place, 0, DATA).status_code == 204


def test_termination_frees_bytes_and_dataset(house: House) -> None:
    begun = begin(house)
    place = begun.headers["location"]
    send(house, place, 0, DATA[:10])
    assert house.ask("DELETE", place, headers=TUS).status_code == 204
    assert house.ask("HEAD", place, headers=TUS).status_code == 404
    assert list(house.site.uploads.iterdir()) == []
    check_problem(house.ask("GET", f"/v1/datasets/{begun.headers['graft-dataset-id']}"), 404, "dataset_not_found")


def test_termination_leaves_a_complete_dataset_alone(house: House) -> None:
    begun = begin(house)
    place = begun.headers["location"]
    send(house, place, 0, DATA)
    assert house.ask("DELETE", place, headers=TUS).status_code == 204
    assert house.ask("GET", f"/v1/datasets/{begun.headers['graft-dataset-id']}").json()["state"] == "CHECKING"


def test_idle_uploads_expire_and_a_part_starts_the_time_anew(house: House) -> None:
    old, fresh = begin(house).headers["location"], begin(house).headers["location"]
    with transaction(house.site.engine) as session:
        for place in (old, fresh):
            session.get_one(UploadRow, place.rpartition("/")[2]).expires_at -= house.site.settings.upload_ttl_s - 60
    send(house, fresh, 0, DATA[:10])
    with transaction(house.site.engine) as session:
        for place in (old, fresh):
            session.get_one(UploadRow, place.rpartition("/")[2]).expires_at -= 120
    check_problem(send(house, old, 0, DATA), 404, "upload_not_found")
    assert tus.expire(house.site) == 1
    assert [path.name for path in house.site.uploads.iterdir()] == [fresh.rpartition("/")[2]]
    assert offset_of(house, fresh) == 10
    states = [item["state"] for item in house.ask("GET", "/v1/datasets").json()["items"]]
    assert states == ["UPLOADING"]


def test_files_that_no_upload_owns_go_in_the_end(house: House) -> None:
    orphan = house.site.uploads / "source-x.partial"
    orphan.write_bytes(b"x")
    tus.expire(house.site)
    assert orphan.exists()
    os.utime(orphan, (0, 0))
    tus.expire(house.site)
    assert not orphan.exists()


@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
def test_other_versions_are_refused(house: House, method: str) -> None:
    place = begin(house).headers["location"]
    path = "/v1/uploads" if method == "POST" else place
    answer = house.ask(method, path, headers={"Tus-Resumable": "0.2.2", "Upload-Length": "3"})
    assert answer.status_code == 412
    assert answer.headers["tus-version"] == "1.0.0"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 400, "bad_request"),
        ({"Upload-Length": "-1"}, 400, "bad_request"),
        ({"Upload-Length": "1e9"}, 400, "bad_request"),
        ({"Upload-Length": "0"}, 422, "upload_empty"),
        ({"Upload-Length": "99999999999"}, 413, "upload_too_large"),
        ({"Upload-Length": "9", "Upload-Metadata": "name !"}, 400, "bad_request"),
        ({"Upload-Length": "9", "Upload-Metadata": "name eA==,name eA=="}, 400, "bad_request"),
        ({"Upload-Length": "9", "Upload-Metadata": metadata(task="astrology")}, 422, "unknown_task"),
        ({"Upload-Length": "9", "Upload-Metadata": metadata(name="a\0b")}, 422, "validation_error"),
        ({"Upload-Length": "9", "Upload-Metadata": metadata(options="{")}, 400, "malformed_json"),
        ({"Upload-Length": "9", "Upload-Metadata": metadata(sha256="xyz")}, 400, "bad_checksum"),
        ({"Upload-Length": "9", "Content-Type": "multipart/form-data"}, 415, "unsupported_media_type"),
    ],
)
def test_beginnings_that_are_refused(house: House, headers: dict[str, str], status: int, code: str) -> None:
    check_problem(house.ask("POST", "/v1/uploads", headers=TUS | headers), status, code)
    assert house.ask("GET", "/v1/datasets").json()["items"] == []


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "application/zip"}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"Upload-Offset": "x"}, 400, "bad_request"),
        ({"Upload-Offset": "-1"}, 400, "bad_request"),
    ],
)
def test_parts_that_are_refused(house: House, headers: dict[str, str], status: int, code: str) -> None:
    place = begin(house).headers["location"]
    answer = house.ask("PATCH", place, headers=PART | {"Upload-Offset": "0"} | headers, content=DATA)
    check_problem(answer, status, code)
    assert offset_of(house, place) == 0


def test_method_may_be_overridden(house: House) -> None:
    place = begin(house).headers["location"]
    headers = PART | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = house.ask("POST", place, headers=headers, content=DATA)
    assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(len(DATA)))


def test_a_store_that_is_away_costs_no_byte(house: House) -> None:
    """The last part is not acknowledged before the dataset is whole, and can be sent again."""
    begun = begin(house)
    place = begun.headers["location"]
    send(house, place, 0, DATA[:10])
    folder = house.site.blobs.folder
    folder.rename(folder.with_name("away"))
    folder.write_text("no folder")
    assert send(house, place, 10, DATA[10:]).status_code >= 500
    assert offset_of(house, place) == 10
    folder.unlink()
    folder.with_name("away").rename(folder)
    assert send(house, place, 10, DATA[10:]).status_code == 204
    dataset = begun.headers["graft-dataset-id"]
    assert b"".join(house.site.blobs.read(f"{house.workspace_id}/datasets/{dataset}/upload")) == DATA
