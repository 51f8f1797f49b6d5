"""Every error as `application/problem+json` (RFC 9457) with a stable `code`, rendered in this one place.

An expected error is a `GraftError`; what it means in HTTP is decided by `status_of`. Servers behind this one that do
not answer give 503 with Retry-After. Anything else is a bug: 500, logged in full, told to nobody.
"""

import errno
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from domain.errors import (
    Conflict,
    GraftError,
    Invalid,
    LeaseLost,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
    Unsupported,
)

log = logging.getLogger("graft.api")

STATUS: dict[type[GraftError], int] = {
    Invalid: 422,
    NotFound: 404,
    Conflict: 409,
    Unauthorized: 401,
    TooLarge: 413,
    Unsupported: 415,
    Unavailable: 503,
    LeaseLost: 409,
}
# Codes that mean something more exact than their class.
STATUS_OF_CODE: dict[str, int] = {
    "bad_request": 400,
    "bad_host": 400,
    "bad_cursor": 400,
    "bad_checksum": 400,
    "bad_event_id": 400,
    "malformed_json": 400,
    "upload_truncated": 400,
    "upload_exceeds_length": 400,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "upload_expired": 410,
    "tus_version": 412,
    "range_not_satisfiable": 416,
    "upload_locked": 423,
    "chunk_checksum_mismatch": 460,
    "insufficient_storage": 507,
}
RETRY_AFTER_S = 5
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


class Malformed(Invalid):
    """The request itself cannot be read."""


def status_of(error: GraftError) -> int:
    """The HTTP status of an expected error."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 422)


def problem(
    status: int,
    code: str,
    detail: str,
    facts: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """One answer of the problem form. Facts never overwrite the five standard members."""
    body = {key: _clean(value) for key, value in (facts or {}).items()}
    title = "Checksum Mismatch" if status == 460 else HTTPStatus(status).phrase
    body |= {
        "type": f"urn:graft:problem:{code}",
        "title": title,
        "status": status,
        "detail": _clean(detail),
        "code": code,
    }
    return JSONResponse(body, status_code=status, headers=dict(headers or {}), media_type="application/problem+json")


def render(error: GraftError) -> JSONResponse:
    """An expected error as an answer."""
    status = status_of(error)
    headers: dict[str, str] = {}
    facts = dict(error.facts)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="graft"'
    if status in (503, 423):
        headers["Retry-After"] = str(facts.pop("retry_after_s", RETRY_AFTER_S))
    if status == 412:
        headers["Tus-Version"] = "1.0.0"
    if status == 416 and "size_bytes" in facts:
        headers["Content-Range"] = f"bytes */{facts['size_bytes']}"
    return problem(status, error.code, error.detail, facts, headers)


def install(app: FastAPI) -> None:
    """Register the handlers of every kind of error."""
    app.add_exception_handler(GraftError, _on_graft_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for kind in (OperationalError, InterfaceError, DBAPIError, PoolTimeout, ConnectionError, TimeoutError):
        app.add_exception_handler(kind, _on_outage)
    app.add_exception_handler(OSError, _on_os_error)
    app.add_exception_handler(Exception, _on_bug)


def plain_message(found: Mapping[str, Any]) -> str:
    """What pydantic found wrong, without its prefix to our own sentences."""
    return str(found["msg"]).removeprefix("Value error, ")


def is_full_disk(error: BaseException) -> bool:
    """No room left, or no quota, wherever it was noticed."""
    return isinstance(error, OSError) and error.errno in _FULL_DISK


def full_disk() -> Unavailable:
    return Unavailable("insufficient_storage", "the server has no room left to store this; nothing of it was kept")


def _on_graft_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, GraftError)
    return render(error)


def _on_validation_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    assert isinstance(error, RequestValidationError)
    found = [
        {"where": ".".join(str(part) for part in e["loc"]), "message": plain_message(e), "type": e["type"]}
        for e in error.errors()[:50]
    ]
    said = "; ".join(f"{e['where']}: {e['message']}" for e in found[:3])
    return problem(422, "validation_error", said or "the request is not valid", {"errors": found})


def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return problem(404, "not_found", f"there is nothing at {request.scope.get('path', '')!r}", None, headers)
    if error.status_code == 405:
        allowed = ", ".join(_allowed(request))
        headers = {k: v for k, v in headers.items() if k.lower() != "allow"} | {"Allow": allowed}
        detail = f"{request.method} is not allowed here" + (f"; allowed: {allowed}" if allowed else "")
        return problem(405, "method_not_allowed", detail, None, headers)
    code = {400: "bad_request", 401: "unauthorized", 413: "body_too_large", 415: "unsupported_media_type"}
    return problem(error.status_code, code.get(error.status_code, "http_error"), str(error.detail), None, headers)


def _allowed(request: Request) -> list[str]:
    """Every method that some route takes at this address."""
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]


def _on_outage(request: Request, error: Exception) -> JSONResponse:
    text = str(getattr(error, "orig", error))
    if "disk is full" in text:
        return render(full_disk())
    broken = isinstance(error, OperationalError | InterfaceError | PoolTimeout | ConnectionError | TimeoutError)
    if not broken and not getattr(error, "connection_invalidated", False):
        return _on_bug(request, error)
    log.warning("a server behind the API does not answer: %s", text.splitlines()[0] if text else type(error).__name__)
    return render(Unavailable("unavailable", "a server behind this one does not answer; try again"))


def _on_os_error(request: Request, error: Exception) -> JSONResponse:
    return render(full_disk()) if is_full_disk(error) else _on_bug(request, error)


def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error in %s %s", request.method, request.scope.get("path"), exc_info=error)
    facts = {"request_id": request.scope.get("state", {}).get("request_id")}
    return problem(500, "internal_error", "an unexpected error; the server's log has the details", facts)


def _clean(value: Any) -> Any:
    """JSON that every client can read: no NaN, no lone surrogate, no object that cannot be written."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)
