import json
import socket
from typing import Any

import pytest

from graft.client import Client
from graft.errors import GraftApiError, Unreachable
from graft.retry import Backoff

JOB = {"id": "job_1", "name": "n", "dataset_id": "ds_1", "state": "WAITING"}
OUT = {
    "type": "urn:graft:problem:unavailable",
    "title": "Unavailable",
    "status": 503,
    "detail": "no database",
    "code": "unavailable",
}


def problem(handler: Any, status: int, content: dict[str, Any], **headers: str) -> None:
    handler.reply(status, json.dumps(content).encode(), Content_Type="application/problem+json", **headers)


def fail_first(n: int, status: int = 503, **headers: str) -> Any:
    """Answers `status` n times, then a job."""
    left = [n]

    def answer(handler: Any, seen: Any) -> None:
        handler.read_body(seen)
        if left[0]:
            left[0] -= 1
            problem(handler, status, {**OUT, "status": status}, **headers)
        else:
            handler.reply(201, json.dumps(JOB).encode())

    return answer


def test_requests_carry_the_key_and_quote_ids(peer: Any) -> None:
    peer.answer = fail_first(0)
    with peer.client() as client:
        client.jobs.get("a/../b c")
    assert peer.seen[0].path == "/v1/jobs/a%2F..%2Fb%20c"
    assert peer.seen[0].headers["authorization"] == "Bearer graft_k.s"


def test_a_503_is_asked_again_with_growing_waits(peer: Any) -> None:
    peer.answer = fail_first(3)
    with peer.client() as client:
        assert client.jobs.get("job_1").id == "job_1"
    assert len(peer.seen) == 4
    assert len(peer.naps) == 3
    assert all(0 < nap <= 0.25 * 2**k for k, nap in enumerate(peer.naps))


def test_retry_after_is_waited_for(peer: Any) -> None:
    peer.answer = fail_first(1, Retry_After="7")
    with peer.client() as client:
        client.jobs.get("job_1")
    assert peer.naps == [7.0]


def test_the_back_off_ends(peer: Any) -> None:
    peer.answer = fail_first(99)
    with peer.client(attempts=3) as client, pytest.raises(GraftApiError) as caught:
        client.jobs.get("job_1")
    assert (caught.value.code, caught.value.status, len(peer.seen)) == ("unavailable", 503, 3)


def test_a_submit_is_repeated_under_one_idempotency_key(peer: Any) -> None:
    peer.answer = fail_first(2)
    with peer.client() as client:
        client.jobs.submit("ds_1", trials=3, sources=["torchvision:resnet18"], space={"data.flip": False})
        client.jobs.submit("ds_1", trials=3)
    keys = [seen.headers["idempotency-key"] for seen in peer.seen]
    assert len(keys) == 4
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert json.loads(peer.seen[0].body) == {
        "dataset_id": "ds_1", "sources": ["torchvision:resnet18"], "space": {"data.flip": False},
        "budget": {"trials": 3},
    }  # fmt: skip


def test_what_is_not_idempotent_is_sent_once(peer: Any) -> None:
    peer.answer = fail_first(1)
    with peer.client() as client, pytest.raises(GraftApiError):
        client.keys.create("laptop")
    assert len(peer.seen) == 1


def test_a_connection_that_breaks_is_made_again(peer: Any) -> None:
    def answer(handler: Any, seen: Any) -> None:
        if len(peer.seen) < 3:
            handler.hang_up()
        else:
            handler.reply(200, json.dumps(JOB).encode())

    peer.answer = answer
    with peer.client() as client:
        assert client.jobs.get("job_1").state == "WAITING"
    assert len(peer.seen) == 3


def test_nobody_there_is_told_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        naps: list[float] = []
        client = Client(url, "k", backoff=Backoff(attempts=3), sleep=naps.append)
        with client, pytest.raises(Unreachable, match="is the service running"):
            client.keys.create("even a POST: it was never sent")
    assert len(naps) == 2


def test_problems_become_errors_with_code_detail_and_facts(peer: Any) -> None:
    content = {**OUT, "status": 409, "code": "in_use", "detail": "job_2 needs it", "needed_by": ["job_2"]}
    peer.answer = lambda handler, _: problem(handler, 409, content)
    with peer.client() as client, pytest.raises(GraftApiError) as caught:
        client.datasets.delete("ds_1")
    error = caught.value
    assert (error.code, error.detail, error.status, error.facts) == (
        "in_use",
        "job_2 needs it",
        409,
        {"needed_by": ["job_2"]},
    )


def test_an_answer_that_is_no_problem_is_an_error_still(peer: Any) -> None:
    peer.answer = lambda handler, _: handler.reply(404, b"<html>not here</html>")
    with peer.client() as client, pytest.raises(GraftApiError) as caught:
        client.jobs.get("job_1")
    assert caught.value.code == "http_404"


def test_lists_are_fetched_page_by_page(peer: Any) -> None:
    pages = {"": (["job_1", "job_2"], "c2"), "cursor=c2": (["job_3"], None)}

    def answer(handler: Any, seen: Any) -> None:
        query = seen.path.partition("?")[2].replace("limit=100", "").strip("&")
        ids, cursor = pages[query]
        handler.reply(200, json.dumps({"items": [{**JOB, "id": i} for i in ids], "next_cursor": cursor}).encode())

    peer.answer = answer
    with peer.client() as client:
        jobs = client.jobs.list()
        assert next(jobs).id == "job_1"
        assert len(peer.seen) == 1
        assert [job.id for job in jobs] == ["job_2", "job_3"]
