"""Hostile and broken HTTP against a real server process: what no in-process client can send."""

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from store.moves import become
from store.session import make_engine, transaction
from store.tables import DatasetRow
from tests.house import CLASSES, STATISTICS, a_zip

TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream"}
MIB = 1024 * 1024


@dataclass
class Server:
    """`python -m api` on a free port."""

    home: Path
    settings: dict[str, str]
    process: subprocess.Popen[str]
    port: int

    @property
    def key(self) -> str:
        return (self.home / "key").read_text().strip()

    @property
    def client(self) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=60)

    def send(self, *lines: str, body: bytes = b"") -> bytes:
        """Raw bytes in, everything that comes back out."""
        with self.connect() as connection:
            connection.sendall("\r\n".join([*lines, f"Authorization: Bearer {self.key}", "", ""]).encode() + body)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def start(home: Path, port: int = 0, **settings: str) -> Server:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GRAFT_")}
    environment |= {"GRAFT_HOME": str(home), "GRAFT_MIN_FREE_BYTES": "0"} | settings
    with (home.parent / f"{home.name}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "api", "--port", str(port)], stdout=subprocess.PIPE, text=True, env=environment,
            cwd=Path(__file__).parents[2], stderr=log,
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Graft API listening on http://127.0.0.1:"), line
    return Server(home, settings, process, int(line.rsplit(":", 1)[1]))


def stop(server: Server) -> int:
    server.process.terminate()
    code = server.process.wait(30)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return code


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start(tmp_path_factory.mktemp("api") / "home")
    yield server
    assert stop(server) in (0, -signal.SIGTERM)
    assert "Traceback" not in (server.home.parent / "home.log").read_text()


def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Poll for what another process does."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: -5"],
        ["Content-Length: five"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Content-Length: 0x5"],
        ["Content-Length: +5"],
    ],
)
def test_lengths_that_do_not_add_up(server: Server, headers: list[str]) -> None:
    before = list_datasets(server)
    answer = server.send("POST /v1/datasets HTTP/1.1", "Host: x", "Connection: close", *headers, body=b"hello")
    assert status_of(answer) in (400, 501), answer
    assert list_datasets(server) == before


@pytest.mark.parametrize(
    "target",
    ["/v1/jobs/../../etc/passwd", "/v1/trials/%2e%2e%2f%2e%2e%2fetc/checkpoint", "/v1/trials/..%2fx/checkpoint",
     "//v1/jobs", "/v1/jobs/%00", "/v1/jobs/job_%ff%fe/bundle", "/v1/trials/tr_" + "a" * 8000 + "/checkpoint"],
)  # fmt: skip
def test_paths_that_lead_nowhere(server: Server, target: str) -> None:
    answer = server.send(f"GET {target} HTTP/1.1", "Host: x", "Connection: close")
    assert status_of(answer) == 404, answer
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("host", ["evil.example/..%2f", "a b", "a@b", "x:99999999", "[::1", "a,b"])
def test_hosts_that_are_no_hosts(server: Server, host: str) -> None:
    answer = server.send("GET /healthz HTTP/1.1", f"Host: {host}", "Connection: close")
    assert status_of(answer) == 400, answer


def test_names_of_hosts_and_proxies_lead_nobody_astray(server: Server) -> None:
    answer = server.send(
        "POST /v1/uploads HTTP/1.1", "Host: evil.example", "X-Forwarded-Host: evil.example", "Connection: close",
        "X-Forwarded-For: 127.0.0.1", "Tus-Resumable: 1.0.0", "Upload-Length: 5", "Content-Length: 0",
    )  # fmt: skip
    assert status_of(answer) == 201, answer
    assert b"evil" not in answer


def test_only_the_hosts_allowed(tmp_path: Path) -> None:
    server = start(tmp_path / "home", GRAFT_ALLOWED_HOSTS="graft.example,other.example")
    try:
        for host, status in {"graft.example": 200, "GRAFT.example:8321": 200, "localhost": 200, "127.0.0.1:1": 200,
                             "evil.example": 400, "graft.example.evil": 400}.items():  # fmt: skip
            answer = server.send("GET /healthz HTTP/1.1", f"Host: {host}", "Connection: close")
            assert status_of(answer) == status, host
        assert b"bad_host" in answer
    finally:
        stop(server)


def test_an_upload_that_breaks_off_leaves_nothing(server: Server) -> None:
    before = list_datasets(server)
    with server.connect() as connection:
        connection.sendall(
            f"POST /v1/datasets HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
            f"Content-Length: {8 * MIB}\r\n\r\n".encode()
            + b"x" * (3 * MIB)
        )
        partial = server.home / "blobs" / ".partial"
        until(lambda: list(partial.iterdir()))
    until(lambda: not list(partial.iterdir()))
    assert list_datasets(server) == before
    assert [path for path in (server.home / "blobs").rglob("*@*") if path.stat().st_size == 3 * MIB] == []


def test_a_part_that_breaks_off_is_gone_on_with(server: Server) -> None:
    data = os.urandom(5 * MIB)
    place, dataset = begin(server, data)
    send_some(server, place, 0, data, 2 * MIB)
    with server.client as client:
        kept = until(lambda: offset_of(client, place))
        assert 0 < kept <= 2 * MIB
        answer = client.patch(place, headers=PART | {"Upload-Offset": str(kept)}, content=data[kept:])
        assert answer.status_code == 204, answer.text
        assert client.get(f"/v1/datasets/{dataset}").json()["sha256"] == hashlib.sha256(data).hexdigest()


def test_of_two_parts_at_once_one_waits_outside(server: Server) -> None:
    data = os.urandom(3 * MIB)
    place, dataset = begin(server, data)
    with server.connect() as first, server.client as client:
        path = server.home / "uploads" / place.rpartition("/")[2]
        first.sendall(part_head(server, place, 0, len(data)) + data[: 2 * MIB])
        until(lambda: path.stat().st_size)
        second = client.patch(place, headers=PART | {"Upload-Offset": "0"}, content=data)
        assert (second.status_code, second.json()["code"]) == (423, "upload_locked")
        first.sendall(data[2 * MIB :])
        assert status_of(first.recv(65536)) == 204
        assert client.get(f"/v1/datasets/{dataset}").json()["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_server_killed_in_the_middle_of_a_part(tmp_path: Path) -> None:
    """The offset promises no more than is on the disk, and the rest gives the same bytes."""
    server = start(tmp_path / "home")
    data = os.urandom(40 * MIB)
    place, dataset = begin(server, data)
    path = server.home / "uploads" / place.rpartition("/")[2]
    with server.connect() as connection:
        connection.sendall(part_head(server, place, 0, len(data)) + data[: 33 * MIB])
        until(lambda: path.stat().st_size >= 32 * MIB)
        server.process.kill()
        server.process.wait()
    server.process.stdout.close()  # type: ignore[union-attr]
    again = start(tmp_path / "home")
    try:
        with again.client as client:
            kept = offset_of(client, place)
            assert 16 * MIB <= kept <= path.stat().st_size
            answer = client.patch(place, headers=PART | {"Upload-Offset": str(kept)}, content=data[kept:])
            assert answer.status_code == 204, answer.text
            assert client.get(f"/v1/datasets/{dataset}").json()["sha256"] == hashlib.sha256(data).hexdigest()
    finally:
        stop(again)


def test_memory_does_not_grow_with_the_file(server: Server) -> None:
    def zeros(n: int) -> Iterator[bytes]:
        piece = bytes(MIB)
        for _ in range(n):
            yield piece

    with server.client as client:
        client.post("/v1/datasets", content=zeros(8))
        before = server.peak_bytes()
        answer = client.post("/v1/datasets", content=zeros(200))
        assert answer.status_code == 201, answer.text
        assert answer.json()["size_bytes"] == 200 * MIB
        assert server.peak_bytes() - before < 16 * MIB
        client.delete(f"/v1/datasets/{answer.json()['id']}")


def test_a_stop_ends_the_event_streams(tmp_path: Path) -> None:
    server = start(tmp_path / "home")
    job = add_waiting_job(server)
    told: list[bytes] = []

    def follow() -> None:
        with (
            server.client as client,
            client.stream("GET", f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as answer,
        ):
            told.extend(answer.iter_raw())

    following = threading.Thread(target=follow)
    following.start()
    until(lambda: any(b"job.state" in piece for piece in told))
    assert stop(server) in (0, -signal.SIGTERM)
    following.join(10)
    assert not following.is_alive()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_puts_a_file_as_the_refusal_says(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(os.urandom(MIB))
    base = f"http://127.0.0.1:{server.port}"
    form = run_curl(server, "-F", f"file=@{path}", f"{base}/v1/datasets")
    assert form["code"] == "unsupported_media_type"
    line = form["curl"].replace("<host>", f"127.0.0.1:{server.port}").replace("photos.zip http", f"{path} http")
    made = run_curl(server, *line.removeprefix("curl -H 'Authorization: Bearer <key>' ").split())
    assert (made["name"], made["state"]) == ("photos.zip", "CHECKING")
    assert made["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def run_curl(server: Server, *arguments: str) -> dict[str, Any]:
    command = ["curl", "-sS", "--noproxy", "*", "-H", f"Authorization: Bearer {server.key}", *arguments]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)
    return found


def list_datasets(server: Server) -> list[str]:
    with server.client as client:
        return [item["id"] for item in client.get("/v1/datasets?limit=200").json()["items"]]


def begin(server: Server, data: bytes) -> tuple[str, str]:
    sha256 = base64.b64encode(hashlib.sha256(data).hexdigest().encode()).decode()
    with server.client as client:
        headers = TUS | {"Upload-Length": str(len(data)), "Upload-Metadata": f"sha256 {sha256}"}
        answer = client.post("/v1/uploads", headers=headers)
        assert answer.status_code == 201, answer.text
        return answer.headers["location"], answer.headers["graft-dataset-id"]


def part_head(server: Server, place: str, offset: int, length: int) -> bytes:
    fields = PART | {"Upload-Offset": str(offset), "Content-Length": str(length), "Host": "x",
                     "Authorization": f"Bearer {server.key}"}  # fmt: skip
    return (f"PATCH {place} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n").encode()


def send_some(server: Server, place: str, offset: int, data: bytes, n: int) -> None:
    """Announce everything, send `n` bytes, hang up."""
    path = server.home / "uploads" / place.rpartition("/")[2]
    with server.connect() as connection:
        connection.sendall(part_head(server, place, offset, len(data)) + data[:n])
        until(lambda: path.stat().st_size > offset)


def offset_of(client: httpx2.Client, place: str) -> int:
    return int(client.head(place, headers=TUS).headers["upload-offset"])


def add_waiting_job(server: Server) -> str:
    """A job on a dataset that a worker would have made ready."""
    engine = make_engine(f"sqlite:///{server.home / 'graft.db'}")
    with server.client as client:
        dataset = client.post("/v1/datasets", content=a_zip()).json()["id"]
        with transaction(engine) as session:
            summary = {"classes": CLASSES, "statistics": STATISTICS, "n_findings": 0}
            become(session, session.get_one(DatasetRow, dataset), "READY", summary=summary, findings=[])
        engine.dispose()
        answer = client.post("/v1/jobs", json={"dataset_id": dataset, "budget": {"trials": 1}})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])
