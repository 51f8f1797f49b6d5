import json
import threading
from typing import Any

import pytest

from store.events import tell
from store.moves import become
from store.session import transaction
from store.tables import JobRow
from tests.house import House, check_problem

STREAM = {"Accept": "text/event-stream"}


def frames(text: str) -> list[dict[str, Any]]:
    """Server-sent events as a client reads them."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if "data" in fields:
            found.append({"seq": int(fields["id"]), "kind": fields["event"], "body": json.loads(fields["data"])})
    return found


def polled(house: House, job: str, **query: int) -> dict[str, Any]:
    answer = house.ask("GET", f"/v1/jobs/{job}/events", params=query)
    assert answer.headers["content-type"] == "application/json"
    body: dict[str, Any] = answer.json()
    return body


def test_stream_and_polling_tell_the_same(house: House) -> None:
    job = house.add_job("COMPLETE")
    with transaction(house.site.engine) as session:
        tell(session, job, "job.log", {"line": "two\nlines, \u2028 and ü"})
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = polled(house, job)
    assert frames(answer.text) == [{k: e[k] for k in ("seq", "kind", "body")} for e in told["items"]]
    assert [e["seq"] for e in told["items"]] == [1, 2, 3, 4, 5, 6]
    assert told["next_after"] == 6
    assert [e["body"]["state"] for e in told["items"] if e["kind"] == "job.state"][-1] == "COMPLETE"


def test_polling_goes_on_where_it_stopped(house: House) -> None:
    job = house.add_job("COMPLETE")
    first = polled(house, job, limit=2)
    assert [e["seq"] for e in first["items"]] == [1, 2]
    rest = polled(house, job, after=first["next_after"])
    assert [e["seq"] for e in rest["items"]] == [3, 4, 5]
    assert polled(house, job, after=5) == {"items": [], "next_after": 5}


def test_a_stream_that_was_cut_is_replayed(house: House) -> None:
    job = house.add_job("COMPLETE")
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": "3"})
    assert [f["seq"] for f in frames(answer.text)] == [4, 5]
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM, params={"after": 4})
    assert [f["seq"] for f in frames(answer.text)] == [5]


def test_a_client_that_has_everything_is_told_not_to_come_back(house: House) -> None:
    job = house.add_job("COMPLETE")
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": "5"})
    assert (answer.status_code, answer.content) == (204, b"")


def test_the_stream_follows_a_job_to_its_end(house: House) -> None:
    job = house.add_job("RUNNING")

    def finish() -> None:
        with transaction(house.site.engine) as session:
            tell(session, job, "job.log", {"line": "later"})
            become(session, session.get_one(JobRow, job), "FINISHING")
            become(session, session.get_one(JobRow, job), "COMPLETE")

    later = threading.Timer(0.5, finish)
    later.start()
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM)  # returns when the stream ends
    later.join()
    told = frames(answer.text)
    assert [f["seq"] for f in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1] == {"seq": 6, "kind": "job.state", "body": {"state": "COMPLETE"}}


def test_the_stream_ends_with_the_server(house: House) -> None:
    job = house.add_job("RUNNING")
    stop = threading.Timer(0.5, house.site.stopping.set)
    stop.start()
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM)
    stop.join()
    assert [f["seq"] for f in frames(answer.text)] == [1, 2, 3]


def test_more_events_than_one_batch(house: House) -> None:
    job = house.add_job("RUNNING")
    with transaction(house.site.engine) as session:
        for n in range(450):
            tell(session, job, "job.log", {"n": n})
        become(session, session.get_one(JobRow, job), "FAILED")
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM)
    assert [f["seq"] for f in frames(answer.text)] == list(range(1, 455))


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 20, "²"])
def test_event_ids_that_cannot_be_read(house: House, given: str) -> None:
    job = house.add_job("COMPLETE")
    answer = house.ask("GET", f"/v1/jobs/{job}/events", headers=STREAM | {"Last-Event-ID": given.encode()})
    check_problem(answer, 400, "bad_event_id")


def test_nothing_to_follow(house: House) -> None:
    for headers in ({}, STREAM):
        answer = house.ask("GET", "/v1/jobs/job_0123456789abcdef/events", headers=headers)
        check_problem(answer, 404, "job_not_found")
