import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from graft.downloads import unzip
from graft.errors import Damaged, GraftApiError, Unreachable

CONTENT = os.urandom(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class File:
    """One immutable file behind HEAD, GET and Range; breaks after `sends[k]` bytes of the k-th GET."""

    def __init__(self, content: bytes = CONTENT, sends: tuple[int, ...] = (), *, ranges: bool = True) -> None:
        self.content, self.sends, self.ranges = content, list(sends), ranges

    def __call__(self, handler: Any, seen: Any) -> None:
        facts = {"ETag": f'"{SHA256}"', "X_Checksum_Sha256": SHA256, "Accept_Ranges": "bytes"}
        wanted = seen.headers.get("range") if self.ranges else None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.content[start:]
        if seen.method == "GET" and self.sends:
            handler.reply(206 if start else 200, body[: self.sends.pop(0)], Content_Length=str(len(body)), **facts)
            handler.hang_up()
        else:
            handler.reply(206 if start else 200, body, **facts)


def test_a_broken_download_goes_on_by_range(peer: Any, tmp_path: Path) -> None:
    peer.answer = File(sends=(150_000, 100_000))
    with peer.client() as client:
        path = client.jobs.download_bundle("job_1", tmp_path)
    assert path == tmp_path / "job_1.zip"
    assert path.read_bytes() == CONTENT
    gets = [seen for seen in peer.seen if seen.method == "GET"]
    assert len(gets) == 3
    assert [seen.headers.get("if-range") for seen in gets] == [None, f'"{SHA256}"', f'"{SHA256}"']
    starts = [int(seen.headers["range"].removeprefix("bytes=").rstrip("-")) for seen in gets[1:]]
    assert 0 < starts[0] <= 150_000
    assert starts[0] < starts[1] <= 250_000
    assert [p.name for p in tmp_path.iterdir()] == ["job_1.zip"]


def test_a_later_call_goes_on_too(peer: Any, tmp_path: Path) -> None:
    peer.answer = File(sends=(200_000,))
    with peer.client(attempts=1) as client:
        with pytest.raises(Unreachable):
            client.jobs.download_bundle("job_1", tmp_path / "b.zip")
        assert not (tmp_path / "b.zip").exists()
        client.jobs.download_bundle("job_1", tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == CONTENT
    assert "range" in peer.seen[-1].headers


def test_a_server_without_ranges_is_read_from_the_start(peer: Any, tmp_path: Path) -> None:
    peer.answer = File(sends=(200_000,), ranges=False)
    with peer.client() as client:
        assert client.jobs.download_bundle("job_1", tmp_path / "b.zip").read_bytes() == CONTENT


def test_damaged_bytes_never_appear_under_the_name(peer: Any, tmp_path: Path) -> None:
    peer.answer = File(content=CONTENT[:-1] + b"?")
    with peer.client() as client, pytest.raises(Damaged, match="arrived damaged"):
        client.jobs.download_bundle("job_1", tmp_path / "b.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_told_in_words(peer: Any, tmp_path: Path) -> None:
    def answer(handler: Any, seen: Any) -> None:
        body = json.dumps({"code": "not_complete", "detail": "the job is RUNNING", "status": 409}).encode()
        handler.reply(409, b"" if seen.method == "HEAD" else body)

    peer.answer = answer
    with peer.client() as client, pytest.raises(GraftApiError) as refused:
        client.jobs.download_bundle("job_1", tmp_path / "bundle.zip")
    assert (refused.value.code, refused.value.detail) == ("not_complete", "the job is RUNNING")


def test_progress_ends_at_the_size(peer: Any, tmp_path: Path) -> None:
    peer.answer = File()
    told: list[tuple[int, int]] = []
    with peer.client() as client:
        client.trials.download_checkpoint("tr_1", tmp_path, tell=lambda *t: told.append(t))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert (tmp_path / "tr_1.safetensors").exists()


def test_a_bundle_lands_in_its_folder_or_not_at_all(tmp_path: Path) -> None:
    cases = (("a/model.onnx", True), ("../out.txt", False), ("/tmp/out.txt", False))
    for k, (name, fits) in enumerate(cases):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(zipfile.ZipInfo(name), b"x")
        (tmp_path / "b.zip").write_bytes(archive.getvalue())
        folder = tmp_path / f"out{k}"
        if fits:
            assert unzip(tmp_path / "b.zip", folder) == [name]
            assert (folder / name).read_bytes() == b"x"
        else:
            with pytest.raises(Damaged, match="outside"):
                unzip(tmp_path / "b.zip", folder)
            assert not folder.exists()
