import json
from typing import Any

import pytest

from graft.errors import GraftApiError

EVENTS = [
    {"seq": 1, "kind": "job.state", "body": {"state": "RUNNING"}, "at": "2026-11-21T08:00:00Z"},
    *(
        {"seq": k, "kind": "trial.report", "body": {"trial_id": "tr_1", "share": k / 10}, "at": "2026-11-21T08:00:01Z"}
        for k in range(2, 9)
    ),
    {"seq": 9, "kind": "job.state", "body": {"state": "COMPLETE"}, "at": "2026-11-21T08:00:09Z"},
]


class Story:
    """The events of a job: streams `per_stream` of them, then breaks; or serves no stream at all."""

    def __init__(self, *, per_stream: int = 100, streams: bool = True, state: str = "COMPLETE") -> None:
        self.per_stream, self.streams, self.state = per_stream, streams, state
        self.asked_after: list[int] = []

    def __call__(self, handler: Any, seen: Any) -> None:
        path, _, query = seen.path.partition("?")
        if not path.endswith("/events"):
            job = {"id": "job_1", "name": "n", "dataset_id": "ds_1", "state": self.state}
            handler.reply(200, json.dumps(job).encode())
        elif self.streams and "text/event-stream" in seen.headers["accept"]:
            self.stream(handler, int(seen.headers["last-event-id"]))
        else:
            after = int(dict(pair.split("=") for pair in query.split("&")).get("after", 0)) if query else 0
            items = [e for e in EVENTS if e["seq"] > after][:3]  # type: ignore[operator]
            handler.reply(200, json.dumps({"items": items, "next_after": after + len(items)}).encode())

    def stream(self, handler: Any, after: int) -> None:
        self.asked_after.append(after)
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b": hello\n\n")
        for event in [e for e in EVENTS if e["seq"] > after][: self.per_stream]:  # type: ignore[operator]
            text = f"id: {event['seq']}\nevent: {event['kind']}\ndata: {json.dumps(event['body'])}\n\n"
            handler.wfile.write(text.encode())
        handler.wfile.write(b"id: 99\nevent: job.log\ndata: {cut off in the mid")
        handler.hang_up()


def test_a_broken_stream_goes_on_after_the_last_event(peer: Any) -> None:
    peer.answer = story = Story(per_stream=4)
    with peer.client() as client:
        events = list(client.jobs.events("job_1"))
    assert [e.seq for e in events] == list(range(1, 10))
    assert events[1].body == {"trial_id": "tr_1", "share": 0.2}
    assert story.asked_after == [0, 4, 8]


def test_events_are_polled_where_streams_do_not_get_through(peer: Any) -> None:
    peer.answer = Story(streams=False)
    with peer.client() as client:
        events = list(client.jobs.events("job_1", after=2))
    assert [e.seq for e in events] == list(range(3, 10))
    assert events[-1].ends_job


def test_streams_that_bring_nothing_give_way_to_polling(peer: Any) -> None:
    peer.answer = story = Story(per_stream=0, state="RUNNING")
    with peer.client() as client:
        assert [e.seq for e in client.jobs.events("job_1")] == list(range(1, 10))
    assert story.asked_after == [0, 0, 0]


def test_nothing_is_left_after_the_end(peer: Any) -> None:
    peer.answer = Story()
    with peer.client() as client:
        assert list(client.jobs.events("job_1", after=9)) == []
        assert [e.seq for e in client.jobs.past_events("job_1", after=5)] == [6, 7, 8, 9]


def test_an_unknown_job_is_an_error_at_once(peer: Any) -> None:
    peer.answer = lambda handler, _: handler.reply(404, b'{"code": "job_not_found", "detail": "no job"}')
    with peer.client() as client, pytest.raises(GraftApiError, match="no job"):
        list(client.jobs.events("job_x"))
    assert len(peer.seen) == 1
