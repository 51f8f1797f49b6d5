"""What happens to a job: as server-sent events with replay, or polled. Both read the same rows."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.auth import CallerDep
from api.ids import JobId
from api.schemas.event import Event, Events, show_event
from api.schemas.problem import problems
from api.site import Site, SiteDep
from domain.errors import GraftError, Invalid, NotFound
from domain.states import JobState
from store.events import since
from store.jobs import get_job
from store.session import reading
from store.tables import JobRow

router = APIRouter(prefix="/v1/jobs", tags=["events"])

POLL_S = 0.3  # only while somebody listens
KEEP_ALIVE_S = 15.0
BATCH = 200
RETRY_MS = 2000

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Events,
        "description": "Events after the number given",
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": 'id: 3\nevent: job.state\ndata: {"state": "RUNNING"}\n\n',
            }
        },
    },
    204: {
        "description": "With `Accept: text/event-stream`: the job has ended and everything was sent; do not reconnect"
    },
    **problems(400, 401, 404, 422, 503),
}


@router.get("/{job}/events", summary="Follow a job", response_model=None, responses=_ANSWERS)
async def follow(
    request: Request, site: SiteDep, caller: CallerDep, job: JobId,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Number of the last event seen.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = BATCH,
    last_event_id: Annotated[str | None, Header(description="As `after`, for server-sent events.")] = None,
) -> Response | Events:  # fmt: skip
    """With `Accept: text/event-stream` the events come as they happen, until the job has ended; a client that was cut
    off names the last one in `Last-Event-ID`. Otherwise a page of them as JSON."""
    found = await run_in_threadpool(_look, site, caller.workspace_id, job, after, limit)
    if "text/event-stream" not in request.headers.get("accept", ""):
        return Events(items=found[0], next_after=found[0][-1].seq if found[0] else after)
    start = _last_seen(last_event_id, after)
    if start != after:
        found = await run_in_threadpool(_look, site, caller.workspace_id, job, start, BATCH)
    if not found[0] and found[1]:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    stream = _stream(request, site, caller.workspace_id, job, start)
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _stream(request: Request, site: Site, workspace_id: str, job_id: str, seen: int) -> AsyncIterator[str]:
    """Events after `seen`, then new ones; ends with the job, the client or the server."""
    yield f"retry: {RETRY_MS}\n\n"
    told_at = time.monotonic()
    while not site.stopping.is_set() and not await request.is_disconnected():
        try:
            events, ended = await run_in_threadpool(_look, site, workspace_id, job_id, seen, BATCH)
        except NotFound:
            return  # the job was deleted
        except GraftError:  # the database is away: say nothing, go on
            events, ended = [], False
        if events:
            yield "".join(
                map(_frame, events)
            )  # at once: each piece sent to a client that has gone is a line in the log
            seen, told_at = events[-1].seq, time.monotonic()
            continue
        if ended:
            return
        if time.monotonic() - told_at >= KEEP_ALIVE_S:
            yield ": still here\n\n"
            told_at = time.monotonic()
        await asyncio.sleep(POLL_S)


def _look(site: Site, workspace_id: str, job_id: str, seen: int, limit: int) -> tuple[list[Event], bool]:
    """Events after `seen`, and whether there will be no more."""
    with reading(site.engine) as session:
        row: JobRow = get_job(session, workspace_id, job_id)
        ended = JobState(row.state).finished and row.n_events <= seen
        if row.n_events <= seen:
            return [], ended
        return [show_event(event) for event in since(session, job_id, seen, limit)], False


def _frame(event: Event) -> str:
    body = json.dumps(event.body, separators=(",", ":"))  # no line breaks in it
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {body}\n\n"


def _last_seen(header: str | None, after: int) -> int:
    if header is None or not header.strip():
        return after
    if not header.isascii() or not header.strip().isdigit() or len(header) > 12:
        raise Invalid("bad_event_id", "Last-Event-ID must be the number of an event of this job")
    return int(header)
