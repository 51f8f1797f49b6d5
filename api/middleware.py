"""Around every request: host check, method override of tus, request id, safe headers, counters.

Plain ASGI, so that streams stay streams.
"""

import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from api.problems import render
from domain.errors import Invalid

_LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9._-]+)(:\d{1,5})?")
_OVERRIDES = {"PATCH", "DELETE", "HEAD", "OPTIONS"}


class Edge:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self._metrics = metrics
        self._hosts = {host.lower() for host in allowed_hosts} | _LOOPBACK if allowed_hosts else set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
                seconds = time.perf_counter() - started
                self._metrics.answered(scope["method"], _route(scope), message["status"], seconds)
            await send(message)

        refusal = self._refuse(scope)
        if refusal is not None:
            await render(refusal)(scope, receive, send_counted)
            return
        _override_method(scope)
        try:
            await self.app(scope, receive, send_counted)
        except Exception:
            self._metrics.answered(scope["method"], _route(scope), 500, time.perf_counter() - started)
            raise

    def _refuse(self, scope: Scope) -> Invalid | None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            return Invalid("bad_request", "give Content-Length or Transfer-Encoding, not both")
        given = headers.getlist("host")
        found = _HOST.fullmatch(given[0]) if len(given) == 1 else None
        if given and found is None:
            return Invalid("bad_host", "the Host header is no host name")
        if self._hosts and (found is None or found["host"].lower() not in self._hosts):
            return Invalid("bad_host", "this server does not answer to that host name; see GRAFT_ALLOWED_HOSTS")
        return None


def _route(scope: Scope) -> str:
    """The template of the route, so that ids do not become labels."""
    path = getattr(scope.get("route"), "path_format", None)
    return path if isinstance(path, str) else "unmatched"


def _override_method(scope: Scope) -> None:
    """`X-HTTP-Method-Override`, as tus demands, for clients whose proxies know GET and POST alone."""
    if scope["method"] == "POST" and scope["path"].startswith("/v1/uploads/"):
        asked = Headers(scope=scope).get("x-http-method-override", "").upper()
        if asked in _OVERRIDES:
            scope["method"] = asked
