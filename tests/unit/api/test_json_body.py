import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.json_body import MAX_BODY_BYTES, MAX_DEPTH, parse
from domain.errors import Invalid
from tests.house import House, check_problem

TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"))
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)


@given(VALUES)
def test_ordinary_json_is_read_as_it_is(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(Invalid):
        parse(data)


HOSTILE = {
    "depth": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "list depth": b"[" * 100_000,
    "nan": b'{"budget": {"wall_s": NaN}}',
    "infinity": b'{"budget": {"wall_s": -Infinity}}',
    "1e400": b'{"budget": {"wall_s": 1e400}}',
    "huge integer": b'{"seed": ' + b"9" * 5000 + b"}",
    "doubled key": b'{"name": "a", "name": "b"}',
    "lone surrogate": b'{"name": "\\ud800"}',
    "lone surrogate in a key": b'{"\\udfff": 1}',
    "NUL": b'{"name": "a\\u0000b"}',
    "NUL deep inside": b'{"space": {"a": ["x", "\\u0000"]}}',
    "not UTF-8": b'{"name": "\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "truncated": b'{"name": ',
    "two values": b"{} {}",
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
}


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/keys"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_malformed(house: House, name: str, path: str) -> None:
    answer = house.ask("POST", path, content=HOSTILE[name], headers={"Content-Type": "application/json"})
    check_problem(answer, 400, "malformed_json")


@pytest.mark.parametrize("body", [b"", b"null", b"1", b'"x"', b"[]", b"{}", b"\xf0\x9f\x92\xa5"])
def test_bodies_of_the_wrong_shape(house: House, body: bytes) -> None:
    answer = house.ask("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_depth_has_a_limit() -> None:
    assert parse(b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH)
    with pytest.raises(Invalid):
        parse(b"[" * (MAX_DEPTH + 1) + b"1" + b"]" * (MAX_DEPTH + 1))


def test_bodies_have_a_limit(house: House) -> None:
    body = json.dumps({"name": "x" * MAX_BODY_BYTES}).encode()
    answer = house.ask("POST", "/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    check_problem(answer, 413, "body_too_large")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-Type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"Content-Type": "multipart/form-data; boundary=x"}, "unsupported_media_type"),
        ({"Content-Type": "text/plain"}, "unsupported_media_type"),
        ({}, "unsupported_media_type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "unsupported_encoding"),
    ],
)
def test_other_media_types_are_refused(house: House, headers: dict[str, str], code: str) -> None:
    check_problem(house.ask("POST", "/v1/jobs", content=b"{}", headers=headers), 415, code)


def test_validation_says_which_field_is_wrong(house: House) -> None:
    answer = house.ask("POST", "/v1/jobs", json={"dataset_id": "ds_1", "budget": {}, "seed": -1})
    found = check_problem(answer, 422, "validation_error")
    assert {error["where"] for error in found["errors"]} == {"body.budget", "body.seed"}
    assert "give trials, wall_s, device_s, target or patience" in found["detail"]
