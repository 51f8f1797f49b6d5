import base64
import hashlib
from collections.abc import Iterator

import pytest

from store.session import reading, transaction
from store.tables import BlobRow, DatasetRow
from tests.house import House, a_zip, check_problem

SHA256 = hashlib.sha256(a_zip()).hexdigest()


def test_upload_is_stored_told_and_handed_to_a_worker(house: House, bell) -> None:
    answer = house.ask(
        "POST", "/v1/datasets", params={"name": "flowers", "options": '{"n_labelled_per_class": 10, "seed": 3}'},
        content=a_zip(), headers={"Content-Type": "application/zip", "X-Checksum-Sha256": SHA256},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert answer.headers["location"] == f"/v1/datasets/{body['id']}"
    assert body["name"] == "flowers"
    assert body["state"] == "CHECKING"
    assert body["sha256"] == SHA256
    assert body["size_bytes"] == len(a_zip())
    assert body["options"] == {"n_labelled_per_class": 10, "seed": 3}
    assert bell.wait(5) == [("prepare_dataset", body["id"])]
    stored = b"".join(house.site.blobs.read(f"{house.workspace_id}/datasets/{body['id']}/upload"))
    assert stored == a_zip()


def test_put_takes_its_name_from_the_path_and_chunks_are_fine(house: House) -> None:
    def chunks() -> Iterator[bytes]:
        for place in range(0, len(a_zip()), 7):
            yield a_zip()[place : place + 7]

    answer = house.ask("PUT", "/v1/datasets/photos of May.zip", content=chunks())
    assert answer.status_code == 201, answer.text
    assert answer.json()["name"] == "photos of May.zip"
    assert answer.json()["sha256"] == SHA256


def test_repr_digest_is_checked(house: House) -> None:
    good = base64.b64encode(bytes.fromhex(SHA256)).decode()
    bad = base64.b64encode(b"\0" * 32).decode()
    ask = lambda digest: house.ask("POST", "/v1/datasets", content=a_zip(), headers={"Repr-Digest": digest})  # noqa: E731
    assert ask(f"sha-256=:{good}:").status_code == 201
    check_problem(ask(f"sha-256=:{bad}:"), 422, "checksum_mismatch")
    check_problem(ask("sha-256=:!!!:"), 400, "bad_checksum")
    check_problem(ask("md5=:AAAA:"), 400, "bad_checksum")


def test_wrong_checksum_leaves_nothing(house: House, bell) -> None:
    answer = house.ask("POST", "/v1/datasets", content=a_zip(), headers={"X-Checksum-Sha256": "0" * 64})
    check_problem(answer, 422, "checksum_mismatch")
    assert house.ask("GET", "/v1/datasets").json() == {"items": [], "next_cursor": None}
    assert list(house.site.blobs.keys()) == []
    assert bell.wait(0) == []


def test_multipart_is_refused_with_the_curl_line_that_works(house: House) -> None:
    answer = house.ask("POST", "/v1/datasets", files={"file": ("photos.zip", a_zip())})
    body = check_problem(answer, 415, "unsupported_media_type")
    assert "curl " in body["detail"]
    assert " -T photos.zip " in body["curl"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/html"}, 415, "unsupported_media_type"),
        ({"Content-Encoding": "gzip"}, 415, "unsupported_encoding"),
        ({"X-Checksum-Sha256": "abc"}, 400, "bad_checksum"),
    ],
)
def test_headers_that_are_refused(house: House, headers: dict[str, str], status: int, code: str) -> None:
    check_problem(house.ask("POST", "/v1/datasets", content=a_zip(), headers=headers), status, code)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"task": "astrology"}, "unknown_task"),
        ({"options": "{"}, "malformed_json"),
        ({"options": "[]"}, "validation_error"),
        ({"options": '{"seed": NaN}'}, "malformed_json"),
        ({"options": '{"split": {"train": 0.9, "val": 0.2, "test": 0.1}}'}, "validation_error"),
        ({"options": '{"n_labelled_per_class": 1}'}, "validation_error"),
        ({"options": '{"n_labelled_per_class": 5, "n_train_per_class": 5}'}, "validation_error"),
        ({"options": '{"colour": 1}'}, "validation_error"),
        ({"name": "a\0b"}, "validation_error"),
        ({"name": "a\nb"}, "validation_error"),
        ({"name": " "}, "validation_error"),
        ({"name": "x" * 201}, "validation_error"),
    ],
)
def test_queries_that_are_refused(house: House, query: dict[str, str], code: str) -> None:
    answer = house.ask("POST", "/v1/datasets", params=query, content=a_zip())
    check_problem(answer, 400 if code == "malformed_json" else 422, code)


def test_unknown_task_tells_the_legal_ones(house: House) -> None:
    answer = house.ask("POST", "/v1/datasets", params={"task": "astrology"}, content=a_zip())
    assert "classification" in check_problem(answer, 422, "unknown_task")["legal"]


def test_limit_is_told_before_and_while_reading(house: House) -> None:
    limit = house.site.settings.max_upload_bytes
    check_problem(house.ask("POST", "/v1/datasets", content=b"x" * (limit + 1)), 413, "upload_too_large")

    def chunks() -> Iterator[bytes]:
        for _ in range(limit // 65536 + 9):
            yield b"x" * 65536

    body = check_problem(house.ask("POST", "/v1/datasets", content=chunks()), 413, "upload_too_large")
    assert body["max_bytes"] == limit
    assert list(house.site.blobs.keys()) == []


def test_empty_body_is_refused(house: House) -> None:
    check_problem(house.ask("POST", "/v1/datasets", content=b""), 422, "upload_empty")
    assert list(house.site.blobs.keys()) == []


def test_rejection_is_told(house: House) -> None:
    dataset = house.add_dataset("REJECTED", error={"code": "archive_overlap", "detail": "entries overlap"})
    body = house.ask("GET", f"/v1/datasets/{dataset}").json()
    assert (body["state"], body["error"]["code"]) == ("REJECTED", "archive_overlap")


def test_findings_are_cut_and_paged(house: House) -> None:
    dataset = house.add_dataset()
    found = [{"code": "image_corrupt", "severity": "error", "detail": f"n {n}"} for n in range(130)]
    with transaction(house.site.engine) as session:
        session.get_one(DatasetRow, dataset).findings = found
    shown = house.ask("GET", f"/v1/datasets/{dataset}").json()
    assert (len(shown["findings"]), shown["n_findings"]) == (100, 130)
    details, cursor = [], None
    for _ in range(3):
        params = {"limit": 50} | ({"cursor": cursor} if cursor else {})
        page = house.ask("GET", f"/v1/datasets/{dataset}/findings", params=params).json()
        details += [item["detail"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert details == [f"n {n}" for n in range(130)]
    assert cursor is None


def test_list_walks_every_dataset_once_newest_first(house: House) -> None:
    made = [house.add_dataset() for _ in range(5)]
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = house.ask("GET", "/v1/datasets", params=params).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == made[::-1]
    found = house.ask("GET", "/v1/datasets", params={"state": "CHECKING"}).json()
    assert found["items"] == []


def test_delete_frees_the_bytes(house: House) -> None:
    dataset = house.add_dataset()
    assert list(house.site.blobs.keys())
    assert house.ask("DELETE", f"/v1/datasets/{dataset}").status_code == 204
    assert list(house.site.blobs.keys()) == []
    with reading(house.site.engine) as session:
        assert session.query(BlobRow).count() == 0
    check_problem(house.ask("GET", f"/v1/datasets/{dataset}"), 404, "dataset_not_found")
    check_problem(house.ask("DELETE", f"/v1/datasets/{dataset}"), 404, "dataset_not_found")


def test_delete_of_a_needed_dataset_lists_who_needs_it(house: House) -> None:
    job = house.add_job("RUNNING")
    dataset = house.ask("GET", f"/v1/jobs/{job}").json()["dataset_id"]
    body = check_problem(house.ask("DELETE", f"/v1/datasets/{dataset}"), 409, "still_needed")
    assert body["needed_by"] == [job]
    assert house.ask("GET", f"/v1/datasets/{dataset}").status_code == 200
