"""Following a job: server-sent events, reconnected where they broke; polled where they do not get through."""

import json
from collections.abc import Iterator

import httpx

from graft.answers import Event, Job, read
from graft.errors import GraftApiError
from graft.retry import RETRIED_STATUS
from graft.sse import parse
from graft.transport import Transport, segment

READ_S = 60.0  # the service sends a comment far more often than this
POLL_S = 1.0
PAGE = 200
_TRIES = 3  # streams in a row that bring nothing before polling takes over


class _NoStream(Exception):
    """The answer is no event stream."""


def follow(transport: Transport, job_id: str, after: int = 0) -> Iterator[Event]:
    """Every event after `after`, each once and in order, until the one that ends the job."""
    path = f"/jobs/{segment(job_id)}/events"
    fruitless = 0
    while fruitless < _TRIES:
        fruitless += 1
        try:
            for event in _stream(transport, path, after):
                if event.seq <= after:
                    continue
                after, fruitless = event.seq, 0
                yield event
                if event.ends_job:
                    return
            if fruitless and _is_finished(transport, job_id):
                break  # the stream has nothing left to tell
        except (httpx.TransportError, GraftApiError) as error:
            if not _worth_another(error):
                raise
        except _NoStream:
            break
        if fruitless:
            transport.sleep(transport.backoff.first_s * 2**fruitless)
    yield from poll(transport, job_id, after)


def _worth_another(error: Exception) -> bool:
    """Whether the stream may come back: it broke, or the service is out for a moment."""
    return not isinstance(error, GraftApiError) or error.status in RETRIED_STATUS


def poll(transport: Transport, job_id: str, after: int = 0) -> Iterator[Event]:
    """The same events by asking again and again."""
    finished = False
    while True:
        n_new = 0
        for event in past(transport, job_id, after):
            after, n_new = event.seq, n_new + 1
            yield event
            if event.ends_job:
                return
        if n_new:
            continue
        if finished:
            return  # over before `after`: the event that tells it was asked for earlier
        finished = _is_finished(transport, job_id)
        if not finished:
            transport.sleep(POLL_S)


def past(transport: Transport, job_id: str, after: int = 0) -> Iterator[Event]:
    """The events after `after` that have happened by now."""
    path = f"/jobs/{segment(job_id)}/events"
    headers = {"Accept": "application/json"}
    while True:
        page = transport.send("GET", path, params={"after": after, "limit": PAGE}, headers=headers).json()
        items = [read(Event, item) for item in page["items"]]
        yield from items
        if not items:
            return
        after = items[-1].seq


def _is_finished(transport: Transport, job_id: str) -> bool:
    return read(Job, transport.send("GET", f"/jobs/{segment(job_id)}").json()).finished


def _stream(transport: Transport, path: str, after: int) -> Iterator[Event]:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Last-Event-ID": str(after)}
    with transport.stream(path, headers=headers, read_s=READ_S) as response:
        if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
            raise _NoStream
        for message in parse(response.iter_lines()):
            if not message.id.isdigit():
                continue  # nothing to go on from: not one of the job's events
            yield _event(int(message.id), message.event, message.data)


def _event(seq: int, kind: str, data: str) -> Event:
    """`data` is the body, or the whole event with its body inside."""
    content = json.loads(data)
    if isinstance(content, dict) and {"seq", "kind", "body"} <= content.keys():
        return read(Event, content)
    return Event(seq, kind, content if isinstance(content, dict) else {"value": content})
