import base64
import hashlib
import io
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from store.blob_rows import add_blob
from store.s3_blobs import S3Blobs
from store.session import transaction
from store.tables import JobRow
from tests.house import House, check_problem

BUNDLE = bytes(range(256)) * 16
SHA256 = hashlib.sha256(BUNDLE).hexdigest()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, house: House) -> Iterator[tuple[House, str]]:
    """A finished job whose bundle lies in either kind of blob store."""
    job = house.add_job("COMPLETE")
    if request.param == "local":
        yield house, f"/v1/jobs/{job}/bundle"
        return
    endpoint, bucket = request.getfixturevalue("s3_endpoint"), request.getfixturevalue("s3_bucket")
    settings = house.site.settings.model_copy(update={"blob_url": bucket, "s3_endpoint_url": endpoint})
    app = create_app(settings)
    with transaction(house.site.engine) as session:
        key = session.get_one(JobRow, job).bundle_blob
    assert key is not None
    assert isinstance(app.state.site.blobs, S3Blobs)
    app.state.site.blobs.put(key, io.BytesIO(BUNDLE))
    with TestClient(app) as client:
        yield House(app.state.site, client, house.workspace_id, house.key), f"/v1/jobs/{job}/bundle"


def test_the_whole_file_with_its_checksum(place: tuple[House, str]) -> None:
    house, path = place
    for method in ("GET", "HEAD"):
        answer = house.ask(method, path)
        assert answer.status_code == 200
        assert answer.content == (BUNDLE if method == "GET" else b"")
        assert answer.headers["content-length"] == str(len(BUNDLE))
        assert answer.headers["content-type"] == "application/zip"
        assert answer.headers["etag"] == f'"{SHA256}"'
        assert answer.headers["x-checksum-sha256"] == SHA256
        assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["content-disposition"].startswith("attachment; filename=")


@pytest.mark.parametrize(
    ("header", "span"), [("bytes=0-0", (0, 1)), ("bytes=100-299", (100, 300)), ("bytes=4000-", (4000, 4096)),
                         ("bytes=-5", (4091, 4096)), ("bytes=4095-9999", (4095, 4096))],
)  # fmt: skip
def test_ranges(place: tuple[House, str], header: str, span: tuple[int, int]) -> None:
    house, path = place
    answer = house.ask("GET", path, headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == BUNDLE[slice(*span)]
    assert answer.headers["content-range"] == f"bytes {span[0]}-{span[1] - 1}/4096"
    assert answer.headers["content-length"] == str(span[1] - span[0])


def test_a_broken_download_is_resumed(place: tuple[House, str]) -> None:
    house, path = place
    first = house.ask("GET", path, headers={"Range": "bytes=0-999"})
    rest = house.ask("GET", path, headers={"Range": "bytes=1000-", "If-Range": first.headers["etag"]})
    assert rest.status_code == 206
    assert first.content + rest.content == BUNDLE
    other = house.ask("GET", path, headers={"Range": "bytes=1000-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, BUNDLE)


def test_what_the_client_has_is_not_sent_again(house: House) -> None:
    path = f"/v1/jobs/{house.add_job('COMPLETE')}/bundle"
    for header in (f'"{SHA256}"', f'"x", W/"{SHA256}"', "*"):
        answer = house.ask("GET", path, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == f'"{SHA256}"'
    assert house.ask("GET", path, headers={"If-None-Match": '"x"'}).status_code == 200


def test_a_range_outside_the_file(house: House) -> None:
    answer = house.ask("GET", f"/v1/jobs/{house.add_job('COMPLETE')}/bundle", headers={"Range": "bytes=4096-"})
    check_problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */4096"


def test_many_ranges_get_the_whole_file(house: House) -> None:
    path = f"/v1/jobs/{house.add_job('COMPLETE')}/bundle"
    for header in ("bytes=0-0,1-1", "bytes=" + ",".join(f"{n}-{n}" for n in range(10_000))):
        answer = house.ask("GET", path, headers={"Range": header})
        assert (answer.status_code, answer.content) == (200, BUNDLE)


@pytest.mark.parametrize("state", ["WAITING", "RUNNING", "PAUSED", "FINISHING", "FAILED", "CANCELLED"])
def test_no_bundle_before_the_job_is_complete(house: House, state: str) -> None:
    answer = house.ask("GET", f"/v1/jobs/{house.add_job(state)}/bundle")
    assert check_problem(answer, 409, "not_complete")["state"] == state


def test_checkpoints_that_are_kept_and_not_kept(house: House) -> None:
    job = house.add_job("COMPLETE")
    (kept,) = house.ask("GET", f"/v1/jobs/{job}/trials").json()["items"]
    answer = house.ask("GET", f"/v1/trials/{kept['id']}/checkpoint")
    assert (answer.status_code, answer.content) == (200, b"w" * 99)
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    for number, state in ((1, "RUNNING"), (2, "PRUNED")):
        trial = house.add_trial(job, number, state)
        answer = house.ask("GET", f"/v1/trials/{trial}/checkpoint")
        assert check_problem(answer, 409, "not_complete")["state"] == state


def test_a_blob_that_is_gone_is_an_answer_and_no_broken_stream(house: House) -> None:
    job = house.add_job("COMPLETE")
    with transaction(house.site.engine) as session:
        house.site.blobs.delete(str(session.get_one(JobRow, job).bundle_blob))
    check_problem(house.ask("GET", f"/v1/jobs/{job}/bundle"), 404, "blob_not_found")


def test_an_empty_file_is_a_file(house: House) -> None:
    job = house.add_job("COMPLETE")
    key = f"{house.workspace_id}/jobs/{job}/empty.zip"
    info = house.site.blobs.put(key, io.BytesIO(b""))
    with transaction(house.site.engine) as session:
        add_blob(session, house.workspace_id, key, info, job)
        session.get_one(JobRow, job).bundle_blob = key
    answer = house.ask("GET", f"/v1/jobs/{job}/bundle")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
