import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from graft.archives import Archive, sha256_of
from graft.errors import GraftApiError
from graft.uploads import send_resumable

DATASET = {"id": "ds_1", "name": "n", "task": "classification", "state": "CHECKING"}
FACTS = {"name": "photos", "task": "classification", "options": {"seed": 1}}


def make_archive(folder: Path, n_bytes: int) -> Archive:
    path = folder / "photos.zip"
    path.write_bytes(b"PK\x03\x04" + os.urandom(n_bytes - 4))
    return Archive(path, n_bytes, sha256_of(path), "application/zip")


class Tus:
    """The server's side of tus 1.0: keeps what arrives, and breaks where it is told to."""

    def __init__(self, *, break_at: list[int]) -> None:
        self.break_at = break_at  # sizes at which the connection breaks, once each
        self.got = b""
        self.length = -1
        self.metadata: dict[str, str] = {}
        self.patches: list[int] = []

    def __call__(self, handler: Any, seen: Any) -> None:
        if seen.method == "POST":
            self.length = int(seen.headers["upload-length"])
            pairs = (pair.split(" ") for pair in seen.headers["upload-metadata"].split(","))
            self.metadata = {name: base64.b64decode(value).decode() for name, value in pairs}
            handler.reply(201, Location="http://elsewhere/v1/uploads/up_1", Graft_Dataset_Id="ds_1", Upload_Offset="0")
        elif seen.method == "HEAD":
            handler.reply(200, Upload_Offset=str(len(self.got)), Upload_Length=str(self.length))
        elif seen.method == "PATCH":
            self.patch(handler, seen)
        else:
            handler.reply(200, json.dumps(DATASET).encode())

    def patch(self, handler: Any, seen: Any) -> None:
        offset = int(seen.headers["upload-offset"])
        self.patches.append(offset)
        if offset != len(self.got):
            handler.read_body(seen)
            handler.reply(409, b"{}")
            return
        end = offset + int(seen.headers["content-length"])
        if self.break_at and self.break_at[0] < end:
            self.got += handler.read_body(seen, self.break_at.pop(0) - offset)
            handler.hang_up()
            return
        self.got += handler.read_body(seen)
        handler.reply(204, Upload_Offset=str(len(self.got)))


def test_a_small_archive_goes_in_one_request_with_its_checksum(peer: Any, tmp_path: Path) -> None:
    def answer(handler: Any, seen: Any) -> None:
        handler.read_body(seen)
        handler.reply(201, json.dumps(DATASET).encode())

    peer.answer = answer
    archive = make_archive(tmp_path, 2_500_000)
    with peer.client() as client:
        assert client.datasets.upload(archive.path, "my photos", options={"seed": 1}).id == "ds_1"
    (seen,) = peer.seen
    assert seen.path == "/v1/datasets?name=my+photos&task=classification&options=%7B%22seed%22%3A1%7D"
    assert seen.headers["x-checksum-sha256"] == hashlib.sha256(seen.body).hexdigest() == archive.sha256
    assert seen.headers["content-length"] == "2500000"
    assert "transfer-encoding" not in seen.headers


def test_a_broken_upload_goes_on_at_the_servers_offset(peer: Any, tmp_path: Path) -> None:
    archive = make_archive(tmp_path, 1_000_000)
    peer.answer = tus = Tus(break_at=[123_456, 650_001])
    with peer.client() as client:
        found = send_resumable(client._transport, archive, FACTS, piece_bytes=400_000)
    assert found.id == "ds_1"
    assert hashlib.sha256(tus.got).hexdigest() == archive.sha256
    assert tus.patches == [0, 123_456, 400_000, 650_001, 800_000]
    assert tus.metadata == {
        "filename": "photos.zip", "filetype": "application/zip", "name": "photos", "task": "classification",
        "options": '{"seed":1}', "sha256": archive.sha256,
    }  # fmt: skip


def test_a_later_process_goes_on_with_a_broken_upload(peer: Any, tmp_path: Path) -> None:
    archive = make_archive(tmp_path, 1_000_000)
    memory = tmp_path / "uploads.json"
    peer.answer = tus = Tus(break_at=[300_000, 310_000])
    with peer.client(attempts=1) as client, pytest.raises(Exception, match="no answer"):
        send_resumable(client._transport, archive, FACTS, memory=memory)
    assert tus.patches == [0]
    with peer.client() as client:
        send_resumable(client._transport, archive, FACTS, memory=memory)
    assert tus.got == archive.path.read_bytes()
    assert tus.patches == [0, 300_000, 310_000]
    assert [seen.method for seen in peer.seen].count("POST") == 1
    assert json.loads(memory.read_text()) == {}


def test_an_expired_upload_begins_anew(peer: Any, tmp_path: Path) -> None:
    archive = make_archive(tmp_path, 10_000)
    memory = tmp_path / "uploads.json"
    peer.answer = first = Tus(break_at=[5_000])
    with peer.client(attempts=1) as client, pytest.raises(Exception, match="no answer"):
        send_resumable(client._transport, archive, FACTS, memory=memory)
    assert len(first.got) == 5_000
    second = Tus(break_at=[])

    def expired_once(handler: Any, seen: Any) -> None:
        if seen.method == "HEAD" and not second.metadata:
            handler.reply(410)
        else:
            second(handler, seen)

    peer.answer = expired_once
    with peer.client() as client:
        send_resumable(client._transport, archive, FACTS, memory=memory)
    assert second.got == archive.path.read_bytes()


def test_a_refused_upload_is_not_tried_again(peer: Any, tmp_path: Path) -> None:
    body = json.dumps({"code": "upload_too_large", "detail": "at most 1 MB"}).encode()
    peer.answer = lambda handler, _: handler.reply(413, body)
    with peer.client() as client, pytest.raises(GraftApiError, match="at most 1 MB"):
        send_resumable(client._transport, make_archive(tmp_path, 10_000), FACTS)
    assert len(peer.seen) == 1
