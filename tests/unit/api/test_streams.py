"""The pieces of a body, from the server's messages to a file that a thread reads."""

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from api import streams
from api.streams import BodyReader, pieces_of, too_large
from domain.errors import GraftError

OPEN = threading.Event()


def request(*bodies: bytes, then: Callable[[], Awaitable[Any]] | None = None) -> Request:
    """A request whose body comes in these messages; `then` says what comes after them instead of the end."""
    left = list(bodies)

    async def receive() -> Any:
        if left:
            body = left.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(left) or then is not None}
        assert then is not None
        return await then()

    return Request({"type": "http", "method": "POST", "headers": [], "path": "/", "query_string": b""}, receive)


async def gather(asked: Request, max_bytes: int = 10**9, closing: threading.Event = OPEN) -> tuple[bytes, str | None]:
    """What came, and the code of the error it ended with."""
    came = b""
    try:
        async for piece in pieces_of(asked, closing, max_bytes=max_bytes, too_long=lambda: too_large(max_bytes)):
            came += piece
    except GraftError as error:
        return came, error.code
    return came, None


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=12), st.integers(1, 64), st.integers(1, 50))
def test_the_reader_gives_the_bytes_of_the_messages(bodies: list[bytes], piece_bytes: int, read_bytes: int) -> None:
    whole = b"".join(bodies)

    async def read() -> bytes:
        reader = BodyReader(
            pieces_of(request(*bodies), OPEN, max_bytes=10**9, too_long=lambda: too_large(0)), len(whole)
        )

        def work() -> bytes:
            file = io.BufferedReader(reader, 16)
            return b"".join(iter(lambda: file.read(read_bytes), b""))

        return await anyio.to_thread.run_sync(work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_BYTES", piece_bytes)
        assert asyncio.run(read()) == whole


def test_pieces_have_about_one_size() -> None:
    async def sizes() -> list[int]:
        asked = request(*[b"x" * 65536] * 40)
        return [len(p) async for p in pieces_of(asked, OPEN, max_bytes=10**9, too_long=lambda: too_large(0))]

    assert asyncio.run(sizes()) == [1024 * 1024, 1024 * 1024, 512 * 1024]


def test_a_sender_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "IDLE_S", 0.05)
    monkeypatch.setattr(streams, "TICK_S", 0.02)
    assert asyncio.run(gather(request(b"a", then=asyncio.Event().wait))) == (b"a", "request_timeout")


def test_a_server_that_closes_breaks_off_and_keeps_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "TICK_S", 0.02)
    closing = threading.Event()
    closing.set()
    assert asyncio.run(gather(request(b"abc", then=asyncio.Event().wait), closing=closing)) == (b"abc", "stopping")
    assert asyncio.run(gather(request(b"abc"), closing=closing)) == (b"abc", None)  # that was the end anyway


def test_what_came_before_a_break_is_given_out() -> None:
    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    assert asyncio.run(gather(request(b"abc", b"de", then=gone))) == (b"abcde", "upload_truncated")


def test_a_body_that_grows_past_the_limit() -> None:
    assert asyncio.run(gather(request(b"abc", b"de"), max_bytes=5)) == (b"abcde", None)
    assert asyncio.run(gather(request(b"abc", b"def"), max_bytes=5))[1] == "upload_too_large"


def test_a_body_shorter_than_announced_is_an_error_to_the_reader() -> None:
    async def read() -> None:
        reader = BodyReader(pieces_of(request(b"abc"), OPEN, max_bytes=10, too_long=lambda: too_large(0)), 5)
        await anyio.to_thread.run_sync(io.BufferedReader(reader).read)

    with pytest.raises(GraftError, match="upload_truncated"):
        asyncio.run(read())
