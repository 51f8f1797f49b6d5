"""Raw bodies of any length at constant memory: from the socket through a checksum into a file or the blob store.

The blob store is asked from a thread of a small pool of its own; it reads a `BodyReader`, which fetches each piece from
the event loop. So a slow store slows the sender, a full disk or a broken connection ends both, and nothing is queued.
"""

import asyncio
import base64
import binascii
import io
import re
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, TypeVar, cast

import anyio.from_thread
import anyio.to_thread
from fastapi import Request

from api.problems import is_full_disk
from api.site import Site
from domain.errors import GraftError, Invalid, TooLarge, Unavailable, Unsupported

PIECE_BYTES = 1024 * 1024
IDLE_S = 60.0  # a sender that is silent for so long is gone
TICK_S = 1.0
BROKE_OFF = frozenset({"upload_truncated", "request_timeout", "stopping"})  # what came until then is good
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_REPR_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]{1,64}):")

T = TypeVar("T")


def check_raw(request: Request, kinds: frozenset[str], curl: str) -> None:
    """Refuse bodies that are not the file itself: multipart forms, encodings, other media types."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in kinds:
        what = "multipart forms are not read" if kind.startswith("multipart/") else f"{kind[:80]!r} is not read here"
        raise Unsupported(
            "unsupported_media_type",
            f"{what}; send the file itself as the body: {curl}",
            legal=sorted(kinds),
            curl=curl,
        )
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise Unsupported(
            "unsupported_encoding", f"send the file as it is, without Content-Encoding: {curl}", curl=curl
        )


def check_length(request: Request, site: Site, *, max_bytes: int) -> int | None:
    """The announced length of the body, None when it is sent in chunks; refused before a byte is read if too long."""
    given = request.headers.get("content-length")
    if given is None:
        check_room(site, 0)
        return None
    if not given.isascii() or not given.isdigit() or len(given) > 19:
        raise Invalid("bad_request", "Content-Length must be a whole number")
    length = int(given)
    if length > max_bytes:
        raise too_large(max_bytes)
    check_room(site, length)
    return length


def check_room(site: Site, length: int) -> None:
    """Refuse what would leave less than `min_free_bytes` on the disk that holds the uploads."""
    free = shutil.disk_usage(site.settings.home).free
    if free - length < site.settings.min_free_bytes:
        raise Unavailable("insufficient_storage", f"{free} bytes are free here, too little to take {length} more")


def too_large(max_bytes: int) -> TooLarge:
    return TooLarge("upload_too_large", f"an upload may have {max_bytes} bytes", max_bytes=max_bytes)


def given_sha256(request: Request) -> str | None:
    """The checksum the sender announces, as lower-case hexadecimal digits."""
    plain = request.headers.get("x-checksum-sha256")
    if plain is not None:
        if not _SHA256.fullmatch(plain.strip()):
            raise Invalid("bad_checksum", "X-Checksum-Sha256 must be 64 hexadecimal digits")
        return plain.strip().lower()
    digest = request.headers.get("repr-digest") or request.headers.get("content-digest")
    if digest is None:
        return None
    found = _REPR_DIGEST.search(digest)
    raw = decode_base64(found[1]) if found else None
    if raw is None or len(raw) != 32:
        raise Invalid("bad_checksum", "Repr-Digest must hold sha-256=:<base64>:")
    return raw.hex()


def decode_base64(text: str) -> bytes | None:
    """The bytes, or None if it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


async def pieces_of(
    request: Request, closing: threading.Event, *, max_bytes: int, too_long: Callable[[], GraftError]
) -> AsyncIterator[bytes]:
    """The body in pieces of about a mebibyte. Raises when it passes `max_bytes`, and one of BROKE_OFF when no more will
    come; all that came before is given out first."""
    buffer = bytearray()
    total = 0
    try:
        async for received in _bodies(request, closing):
            total += len(received)
            if total > max_bytes:
                raise too_long()
            buffer += received
            if len(buffer) >= PIECE_BYTES:
                yield bytes(buffer)
                buffer.clear()
    except GraftError as error:
        if error.code in BROKE_OFF and buffer:
            yield bytes(buffer)
        raise
    if buffer:
        yield bytes(buffer)


async def _bodies(request: Request, closing: threading.Event) -> AsyncIterator[bytes]:
    """The messages of a body, until it ends, breaks off, falls silent, or the server is `closing`."""
    silent_s, more = 0.0, True
    while more:
        try:
            # A wait for a message can be cut short without losing one; a wait inside `request.stream()` cannot.
            async with asyncio.timeout(TICK_S):
                message = await request.receive()
        except TimeoutError as error:
            silent_s += TICK_S
            if silent_s >= IDLE_S:
                raise Invalid("request_timeout", f"no bytes for {IDLE_S:.0f} s") from error
        else:
            if message["type"] == "http.disconnect":
                raise Invalid("upload_truncated", "the connection broke off")
            silent_s, more = 0.0, message.get("more_body", False)
            yield message.get("body", b"")
        if closing.is_set() and more:
            raise Unavailable("stopping", "the server is being stopped; send it again, an upload from its offset on")


class BodyReader(io.RawIOBase):
    """A request body as a file that a thread may read; every error of the sender is raised by `read`."""

    def __init__(self, pieces: AsyncIterator[bytes], length: int | None = None) -> None:
        self._pieces = pieces
        self._length = length  # as announced
        self._rest = memoryview(b"")
        self._ended = False
        self.n_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        into = memoryview(cast(bytearray, buffer)).cast("B")
        if not self._rest and not self._ended:
            piece = anyio.from_thread.run(self._next)
            self._ended = piece is None
            if self._ended and self._length is not None and self.n_bytes < self._length:
                raise Invalid("upload_truncated", f"{self._length} bytes were announced, {self.n_bytes} came")
            self._rest = memoryview(piece or b"")
        n = min(len(into), len(self._rest))
        into[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        self.n_bytes += n
        return n

    async def _next(self) -> bytes | None:
        return await anext(self._pieces, None)


async def in_thread(site: Site, work: Callable[[], T]) -> T:
    """Blocking work of a stream, in the streams' own pool; a full disk is told as such."""
    try:
        return await anyio.to_thread.run_sync(work, limiter=site.stream_slots)
    except OSError as error:
        if is_full_disk(error):
            raise Unavailable("insufficient_storage", "the server has no room left; nothing was kept") from error
        raise


async def take(request: Request, site: Site, store: Callable[[BinaryIO], T], *, max_bytes: int) -> T:
    """Let `store` read the whole body as a file."""
    length = check_length(request, site, max_bytes=max_bytes)
    pieces = pieces_of(request, site.closing, max_bytes=max_bytes, too_long=lambda: too_large(max_bytes))
    reader = BodyReader(pieces, length)

    def work() -> T:
        return store(cast(BinaryIO, io.BufferedReader(reader, PIECE_BYTES)))

    return await in_thread(site, work)
