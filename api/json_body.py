"""Strict JSON bodies: what a database, a client or a log could choke on is refused at the door."""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from domain.errors import Invalid, TooLarge, Unsupported

MAX_BODY_BYTES = 1024 * 1024
MAX_DEPTH = 32

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `read_json` before FastAPI validates it."""

    def get_route_handler(self) -> Handler:
        inner = super().get_route_handler()
        if self.body_field is None:
            return inner

        async def handle(request: Request) -> Response:
            body = await _body(request)
            if body:
                request._json = parse(body)
            request._body = body
            return await inner(request)

        return handle


def parse(body: bytes, where: str = "the body") -> Any:
    """The value of a JSON text: UTF-8, finite numbers, no doubled keys, no NUL, no lone surrogates, not too deep."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"{where} is not UTF-8 at byte {error.start}") from error
    try:
        value = json.loads(
            text, parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        raise _malformed(f"{where} is no JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise _malformed(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    _check(value, 0)
    return value


async def _body(request: Request) -> bytes:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Unsupported("unsupported_encoding", "send the body as it is, without Content-Encoding")
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) > MAX_BODY_BYTES:
            raise TooLarge("body_too_large", f"a JSON body may have {MAX_BODY_BYTES} bytes", max_bytes=MAX_BODY_BYTES)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if pieces and kind != "application/json" and not kind.endswith("+json"):
        raise Unsupported("unsupported_media_type", "send JSON with the header Content-Type: application/json")
    return bytes(pieces)


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _malformed(f"the body is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            _check(item, depth + 1)


def check_text(text: str, where: str = "the body") -> str:
    """Text that every store and every client can hold; malformed_json otherwise."""
    if "\0" in text:
        raise _malformed(f"{where} holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _malformed(f"{where} holds half of a surrogate pair")
    return text


def _malformed(detail: str) -> Invalid:
    return Invalid("malformed_json", detail)


def _constant(name: str) -> float:
    raise _malformed(f"{name} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _malformed(f"the number {text[:40]} is too large")
    return value


def _int(text: str) -> int:
    if len(text.lstrip("-")) > 19:
        raise _malformed(f"the number {text[:40]}… is too large")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _malformed(f"the key {twice[:80]!r} stands twice in one object")
    return found
