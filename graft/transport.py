"""A pool of connections with the manners of this client: the key, retries with back-off, problems as exceptions."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from random import Random
from typing import Any
from urllib.parse import quote

import httpx

from graft.errors import GraftApiError, Unreachable
from graft.home import Address, is_loopback
from graft.retry import RETRIED_STATUS, Backoff, retry_after_s

Body = Callable[[], bytes | Iterable[bytes]]

_IDEMPOTENT = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})
# The request never left: repeating it is safe whatever it asks for.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Transport:
    """Sends requests below `<url>/v1`."""

    def __init__(self, address: Address, *, backoff: Backoff, timeout_s: float, sleep: Callable[[float], None]) -> None:
        self.address = address
        self.backoff = backoff
        self.sleep = sleep
        self._rng = Random()
        self._http = httpx.Client(
            base_url=f"{address.url}/v1",
            headers={"Authorization": f"Bearer {address.key}", "User-Agent": "graft-python"},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            trust_env=not is_loopback(address.url),  # no proxy stands between us and this machine
        )

    def close(self) -> None:
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """The answer to one request. A connection that fails, or a 503, is tried again if `idempotent`.

        `body` makes the content anew for each attempt.
        """
        return self.retry(
            lambda: self.once(method, path, params=params, json=json, body=body, headers=headers, timeout_s=timeout_s),
            repeatable=method in _IDEMPOTENT if idempotent is None else idempotent,
        )

    def once(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """One attempt; httpx's own errors pass."""
        more: dict[str, Any] = {} if timeout_s is None else {"timeout": timeout_s}
        content = body() if body else None
        response = self._http.request(
            method, path, params=_clean(params), json=json, content=content, headers=headers, **more
        )
        raise_for_problem(response)
        return response

    def retry(
        self,
        attempt: Callable[[], httpx.Response],
        *,
        repeatable: bool,
        also: frozenset[int] = frozenset(),
    ) -> httpx.Response:
        """`attempt()` until it succeeds, fails for good, or the back-off is used up; `also` are further statuses."""
        waits = self.backoff.waits(self._rng)
        while True:
            asked_s = 0.0
            try:
                return attempt()
            except httpx.TransportError as error:
                wait_s = next(waits, None)
                if wait_s is None or not (repeatable or isinstance(error, _NOT_SENT)):
                    raise self.unreachable(error) from error
            except GraftApiError as problem:
                wait_s = next(waits, None)
                if wait_s is None or not repeatable or problem.status not in RETRIED_STATUS | also:
                    raise
                asked_s = problem.facts.get("retry_after_s", 0.0)
            self.sleep(max(wait_s, asked_s))

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, read_s: float | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read piece by piece. One attempt; httpx's own errors pass."""
        timeout = httpx.Timeout(self._http.timeout.connect, read=read_s or self._http.timeout.read)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise_for_problem(response)
            yield response

    def unreachable(self, error: Exception) -> Unreachable:
        return Unreachable(f"no answer from {self.address.url} ({_name(error)}): is the service running?")


def real_sleep(seconds: float) -> None:
    time.sleep(seconds)


def segment(value: str) -> str:
    """One path segment: an id or a name, whatever characters it has."""
    return quote(value, safe="")


def raise_for_problem(response: httpx.Response) -> None:
    """GraftApiError for every answer that is not a success."""
    if response.is_success:
        return
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        content = {}
    status = response.status_code
    detail = (
        content.pop("detail", None) or content.get("title") or f"the service answered {status} {response.reason_phrase}"
    )
    code = content.pop("code", None) or f"http_{status}"
    facts = {name: value for name, value in content.items() if name not in {"type", "title", "status"}}
    wait_s = retry_after_s(response.headers.get("Retry-After"))
    if wait_s is not None:
        facts["retry_after_s"] = wait_s
    raise GraftApiError(str(code), str(detail), status, facts)


def _clean(params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Without the parameters that are not set."""
    return {name: value for name, value in params.items() if value is not None} if params else None


def _name(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
