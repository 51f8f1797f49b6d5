import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError, OperationalError
from starlette.testclient import TestClient

from api.problems import STATUS, install, problem, render, status_of
from domain.errors import Conflict, GraftError, Invalid, NotFound, Unauthorized, Unavailable
from tests.house import House, check_problem


def app_that_raises(error: Exception) -> TestClient:
    app = FastAPI()
    install(app)

    @app.get("/")
    def fail() -> None:
        raise error

    return TestClient(app, raise_server_exceptions=False)


def test_every_expected_error_has_a_status() -> None:
    for kind in GraftError.__subclasses__():
        if kind.__module__ != "domain.errors":  # of a layer that the API never loads; another test may have
            continue
        assert kind in STATUS
        assert 400 <= status_of(kind("some_code", "detail")) < 600


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Invalid("x", "no"), 422, "x"),
        (NotFound("x", "no"), 404, "x"),
        (Conflict("upload_locked", "no"), 423, "upload_locked"),
        (Unavailable("insufficient_storage", "no"), 507, "insufficient_storage"),
        (OSError(errno.ENOSPC, "full"), 507, "insufficient_storage"),
        (OSError(errno.EDQUOT, "quota"), 507, "insufficient_storage"),
        (OperationalError("SELECT 1", {}, Exception("database or disk is full")), 507, "insufficient_storage"),
        (OperationalError("SELECT 1", {}, Exception("server closed the connection")), 503, "unavailable"),
        (ConnectionRefusedError("redis"), 503, "unavailable"),
        (IntegrityError("INSERT", {}, Exception("duplicate")), 500, "internal_error"),
        (OSError(errno.EACCES, "denied"), 500, "internal_error"),
        (KeyError("secret of the house"), 500, "internal_error"),
    ],
)
def test_what_an_error_becomes(error: Exception, status: int, code: str) -> None:
    answer = app_that_raises(error).get("/")
    check_problem(answer, status, code)
    assert "secret of the house" not in answer.text
    assert ("retry-after" in answer.headers) == (status in (423, 503))


def test_unauthorized_says_how_to_come_in() -> None:
    assert render(Unauthorized("unauthorized", "key?")).headers["www-authenticate"].startswith("Bearer")


@given(st.recursive(st.none() | st.floats() | st.text() | st.binary() | st.integers(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_any_fact_can_be_told(fact: Any) -> None:
    def no_constant(name: str) -> None:
        raise AssertionError(name)

    body = json.loads(problem(422, "x", "detail", {"fact": fact}).body, parse_constant=no_constant)
    if isinstance(fact, int) or (isinstance(fact, float) and math.isfinite(fact)):
        assert body["fact"] == fact


def test_facts_overwrite_nothing() -> None:
    body = json.loads(problem(422, "x", "told", {"status": 200, "code": "y", "detail": "z"}).body)
    assert (body["status"], body["code"], body["detail"]) == (422, "x", "told")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v1/jobs/", "/v2/jobs", "/v1/jobs/a/b/c", "/%00", "/é"])
def test_there_is_nothing_there(house: House, path: str) -> None:
    check_problem(house.ask("GET", path), 404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("DELETE", "/v1/jobs"), ("PUT", "/v1/keys"), ("POST", "/healthz")])
def test_a_method_that_is_not_allowed(house: House, method: str, path: str) -> None:
    answer = house.ask(method, path)
    check_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"]
    assert method not in answer.headers["allow"]


def test_every_method_of_an_address_is_named(house: House) -> None:
    assert house.ask("PUT", "/v1/jobs").headers["allow"] == "GET, POST"


def test_a_full_disk_is_507_and_leaves_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to /dev/full fails as a full disk does."""
    opened = Path.open

    def open_on_full_disk(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if mode != "xb":
            return opened(path, mode, *more, **named)
        opened(path, mode).close()
        return opened(Path("/dev/full"), "wb", buffering=0)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        answer = house.ask("POST", "/v1/datasets", content=b"x" * 3_000_000)
    check_problem(answer, 507, "insufficient_storage")
    assert house.ask("GET", "/v1/datasets").json()["items"] == []
    assert [path for path in house.site.blobs.folder.rglob("*") if path.is_file()] == []
    assert house.ask("POST", "/v1/datasets", content=b"x").status_code == 201  # it recovers by itself
