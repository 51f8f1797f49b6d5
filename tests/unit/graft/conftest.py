"""A peer of the protocol: a real HTTP server on this machine, whose answers a test scripts."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from graft.client import Client
from graft.retry import Backoff


@dataclass
class Seen:
    """One request as it arrived; `body` is what was read of it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Peer:
    """Answers every request by `answer(handler, seen)`; keeps what it has seen."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    answer: Callable[["Handler", Seen], None] = lambda handler, _: handler.reply(200, b"{}")
    naps: list[float] = field(default_factory=list)  # waits that the client asked for, none of them slept

    def client(self, *, attempts: int = 4) -> Client:
        return Client(self.url, "graft_k.s", timeout_s=10.0, backoff=Backoff(attempts=attempts), sleep=self.naps.append)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    peer: Peer

    def handle_any(self) -> None:
        lowered = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, lowered)
        self.peer.seen.append(seen)
        self.peer.answer(self, seen)

    do_GET = do_POST = do_PUT = do_HEAD = do_PATCH = do_DELETE = handle_any

    def read_body(self, seen: Seen, n_bytes: int | None = None) -> bytes:
        """Read the body, or its first bytes only."""
        if seen.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                seen.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return seen.body
        length = int(seen.headers.get("content-length", 0))
        seen.body = self.rfile.read(length if n_bytes is None else min(n_bytes, length))
        return seen.body

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers and status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        """Break the connection in the middle of whatever it carries."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    handler = type("ThisHandler", (Handler,), {"peer": peer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    peer.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield peer
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_service_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing here may find, or write into, a service that runs on the developer's machine."""
    for name in ("GRAFT_URL", "GRAFT_API_KEY", "GRAFT_PORT", "GRAFT_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path_factory.mktemp("home")))
