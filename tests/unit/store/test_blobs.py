import hashlib
import io
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest

from domain.errors import Invalid, NotFound, Unavailable
from domain.ports import BlobInfo
from store import s3_blobs
from store.blobs import open_blobs
from store.local_blobs import LocalBlobs
from store.s3_blobs import S3Blobs
from store.settings import Settings

Blobs = LocalBlobs | S3Blobs
ABC = BlobInfo(3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")  # FIPS 180-2


@pytest.fixture(params=["local", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "local":
        return LocalBlobs(tmp_path / "blobs")
    bucket = request.getfixturevalue("s3_bucket")
    return S3Blobs(f"{bucket}/some/prefix", endpoint_url=request.getfixturevalue("s3_endpoint"))


class Pipe(io.RawIOBase):
    """A stream without a place to go back to, that may break."""

    def __init__(self, size: int, *, breaks_at: int | None = None) -> None:
        self.left = size
        self.breaks_at = breaks_at

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.breaks_at is not None and self.left <= self.breaks_at:
            raise ConnectionResetError
        n = min(self.left, size if size >= 0 else self.left, 1 << 16)
        self.left -= n
        return b"x" * n


def test_bytes_come_back_as_they_were_put(blobs: Blobs, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"abc")
    assert blobs.put("ws/a", io.BytesIO(b"abc")) == ABC
    assert blobs.put("ws/b", source, sha256=ABC.sha256.upper()) == ABC
    assert blobs.put("ws/c", io.BytesIO(b""))[0] == 0
    for key in ("ws/a", "ws/b"):
        assert blobs.info(key) == ABC
        assert b"".join(blobs.read(key)) == b"abc"
    assert list(blobs.keys()) == ["ws/a", "ws/b", "ws/c"]


@pytest.mark.parametrize(
    ("start", "end"), [(0, None), (1, None), (1, 3), (2, 2), (3, 1), (0, 99), (5, 6), (6, None), (7, 9)]
)
def test_a_range_is_what_slicing_gives(blobs: Blobs, start: int, end: int | None) -> None:
    blobs.put("a", io.BytesIO(b"abcdef"))
    assert b"".join(blobs.read("a", start, end)) == b"abcdef"[start:end]


def test_a_missing_key_is_told_before_the_first_chunk(blobs: Blobs) -> None:
    for ask in (blobs.info, blobs.read, lambda key: blobs.read(key, 1, 1), blobs.age_s):
        with pytest.raises(NotFound):
            ask("no/such/key")
    blobs.delete("no/such/key")


def test_wrong_bytes_never_appear(blobs: Blobs) -> None:
    with pytest.raises(Invalid, match="checksum_mismatch"):
        blobs.put("a", io.BytesIO(b"abd"), sha256=ABC.sha256)
    with pytest.raises(ConnectionResetError):
        blobs.put("a", Pipe(1 << 20, breaks_at=1 << 18))  # type: ignore[arg-type]
    assert list(blobs.keys()) == []


def test_a_broken_put_leaves_the_old_bytes(blobs: Blobs) -> None:
    blobs.put("a", io.BytesIO(b"abc"))
    with pytest.raises(Invalid):
        blobs.put("a", io.BytesIO(b"new"), sha256=ABC.sha256)
    assert blobs.info("a") == ABC
    new = blobs.put("a", io.BytesIO(b"newer"))
    assert blobs.info("a") == new
    assert b"".join(blobs.read("a")) == b"newer"
    assert list(blobs.keys()) == ["a"]


def test_a_reader_goes_on_while_the_key_is_replaced_or_deleted(blobs: Blobs) -> None:
    blobs.put("a", io.BytesIO(b"abc"))
    chunks = blobs.read("a")
    blobs.put("a", io.BytesIO(b"other"))
    blobs.delete("a")
    assert b"".join(chunks) == b"abc"
    assert list(blobs.keys()) == []


def test_keys_are_found_by_prefix(blobs: Blobs) -> None:
    for key in ("ws/a/x", "ws/ab/y", "ws/b", "other/a"):
        blobs.put(key, io.BytesIO(b"abc"))
    assert list(blobs.keys("ws/a")) == ["ws/a/x", "ws/ab/y"]
    assert list(blobs.keys("ws/a/")) == ["ws/a/x"]
    assert list(blobs.keys("none")) == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "../a", "a/../b", "a//b", ".a", "a/.b", "a\0", "a\n", "é", "a@b", "x" * 201]
)
def test_a_key_can_leave_no_folder(blobs: Blobs, key: str) -> None:
    with pytest.raises(Invalid, match="bad_blob_key"):
        blobs.put(key, io.BytesIO(b"abc"))
    with pytest.raises(Invalid, match="bad_blob_key"):
        blobs.read(key)


def test_a_fetched_file_is_checked_kept_and_fetched_anew_when_it_changes(blobs: Blobs, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    blobs.put("ws/w.safetensors", io.BytesIO(b"abc"))
    place = blobs.fetch("ws/w.safetensors", folder)
    assert (place.read_bytes(), place.suffix) == (b"abc", ".safetensors")
    assert blobs.fetch("ws/w.safetensors", folder) == place
    blobs.put("ws/w.safetensors", io.BytesIO(b"abcd"))
    assert blobs.fetch("ws/w.safetensors", folder).read_bytes() == b"abcd"
    with pytest.raises(NotFound):
        blobs.fetch("ws/none", folder)


def test_rotten_bytes_are_not_handed_out(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.put("a", io.BytesIO(b"abc"))
    next(blobs.folder.glob("a@*")).write_bytes(b"abx")
    with pytest.raises(Unavailable, match="blob_corrupt"):
        blobs.fetch("a", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("known", [False, True])
def test_a_large_stream_is_put_at_constant_memory(blobs: Blobs, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_blobs, "PART_BYTES", 5 << 20)  # the smallest part S3 takes
    size = 24 << 20
    sha256 = hashlib.sha256(b"x" * size).hexdigest()
    stream: BinaryIO = Pipe(size)  # type: ignore[assignment]
    if isinstance(blobs, S3Blobs):  # the server of the test lives in this process and keeps the bytes in memory
        assert blobs.put("big", stream, sha256=sha256 if known else None) == BlobInfo(size, sha256)
    else:
        tracemalloc.start()
        assert blobs.put("big", stream, sha256=sha256 if known else None) == BlobInfo(size, sha256)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 4 << 20
    assert blobs.info("big") == BlobInfo(size, sha256)
    assert b"".join(blobs.read("big", size - 3)) == b"xxx"


def test_an_interrupted_multipart_upload_leaves_nothing(
    s3_bucket: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_blobs, "PART_BYTES", 5 << 20)
    blobs = S3Blobs(s3_bucket, endpoint_url=s3_endpoint)
    with pytest.raises(ConnectionResetError):
        blobs.put("big", Pipe(12 << 20, breaks_at=1 << 20), sha256=ABC.sha256)  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="checksum_mismatch"):
        blobs.put("big", Pipe(12 << 20), sha256=ABC.sha256)  # type: ignore[arg-type]
    assert list(blobs.keys()) == []
    assert "Uploads" not in blobs._s3.list_multipart_uploads(Bucket=blobs.bucket)
    blobs._s3.create_multipart_upload(Bucket=blobs.bucket, Key="left")
    blobs.tidy(older_than_s=-60)
    assert "Uploads" not in blobs._s3.list_multipart_uploads(Bucket=blobs.bucket)


def test_what_a_killed_put_left_is_tidied(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    (tmp_path / ".partial" / "left").write_bytes(b"abc")
    assert list(blobs.keys()) == []
    blobs.tidy(older_than_s=3600)
    assert len(list((tmp_path / ".partial").iterdir())) == 1
    blobs.tidy(older_than_s=-1)
    assert list((tmp_path / ".partial").iterdir()) == []


def test_a_store_says_whether_it_answers(blobs: Blobs, tmp_path: Path, s3_endpoint: str) -> None:
    blobs.check()
    with pytest.raises(Unavailable, match="blobs_unavailable"):
        S3Blobs("s3://no-such-bucket", endpoint_url=s3_endpoint).check()


def test_an_endpoint_that_is_away_is_unavailable(s3_endpoint: str) -> None:
    with pytest.raises(Unavailable, match="blobs_unavailable"):
        S3Blobs("s3://bucket", endpoint_url="http://127.0.0.1:9").info("a")


def test_settings_choose_the_adapter(tmp_path: Path, s3_bucket: str, s3_endpoint: str) -> None:
    assert isinstance(open_blobs(Settings(home=tmp_path)), LocalBlobs)
    remote = open_blobs(Settings(home=tmp_path, blob_url=f"{s3_bucket}/p", s3_endpoint_url=s3_endpoint))
    remote.put("a", io.BytesIO(b"abc"))
    assert list(S3Blobs(s3_bucket, endpoint_url=s3_endpoint).keys()) == ["p/a"]
    with pytest.raises(Invalid, match="bad_settings"):
        open_blobs(Settings(home=tmp_path, blob_url="ftp://somewhere"))


def test_puts_and_deletes_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)

    def put_and_delete(n: int) -> None:
        for _ in range(50):
            blobs.put(f"ws/jobs/{n}", io.BytesIO(b"abc"))
            assert blobs.info(f"ws/jobs/{n}") == ABC
            blobs.delete(f"ws/jobs/{n}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put_and_delete, range(4)))
    assert list(blobs.keys()) == []
