"""Another workspace's things are as good as missing: same status, same body, for every route with an id."""

from typing import Any

import pytest

from tests.house import House, a_zip
from tests.unit.api.test_openapi import METHODS, document

TUS = {"Tus-Resumable": "1.0.0"}
PART = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
MORE: dict[tuple[str, str], dict[str, Any]] = {
    ("/v1/jobs/{job}/cancel", "post"): {"json": {"keep": "nothing"}},
    ("/v1/jobs/{job}/budget", "patch"): {"json": {"trials": 99}},
    ("/v1/uploads/{upload}", "head"): {"headers": TUS},
    ("/v1/uploads/{upload}", "delete"): {"headers": TUS},
    ("/v1/uploads/{upload}", "patch"): {"headers": PART, "content": a_zip()},
}
ROUTES = [
    pytest.param(path, method, id=f"{method.upper()} {path}")
    for path, item in document()["paths"].items()
    for method in sorted(METHODS & set(item))
    if "{" in path and (path, method) != ("/v1/datasets/{dataset}", "put")  # that is the name of a new one
]
MISSING = "0123456789abcdef0123456789ab"


def things(house: House) -> dict[str, str]:
    """One of each noun, by the name it has in paths."""
    job = house.add_job("COMPLETE")
    trial = house.ask("GET", f"/v1/jobs/{job}/trials").json()["items"][0]["id"]
    begun = house.ask("POST", "/v1/uploads", headers=TUS | {"Upload-Length": str(len(a_zip()))})
    safetensors = b"\x3b\0\0\0\0\0\0\0" + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}     ' + b"\0" * 4
    source = house.ask("POST", "/v1/sources?backbone=resnet18", content=safetensors).json()["id"]
    key = house.ask("POST", "/v1/keys", json={"name": "second"}).json()["id"]
    return {
        "job": job, "trial": trial, "dataset": house.add_dataset(), "source": source, "key": key,
        "upload": begun.headers["location"].rpartition("/")[2],
    }  # fmt: skip


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_another_workspace_sees_nothing(house: House, path: str, method: str) -> None:
    mine = things(house)
    _, other = house.add_workspace()
    more = MORE.get((path, method), {})
    headers = house.as_of(other) | more.get("headers", {})
    rest = {k: v for k, v in more.items() if k != "headers"}
    noun = path.split("{")[1].split("}")[0]
    foreign = house.client.request(method, path.replace(f"{{{noun}}}", mine[noun]), headers=headers, **rest)
    prefix = mine[noun].partition("_")[0]
    missing = house.client.request(method, path.replace(f"{{{noun}}}", f"{prefix}_{MISSING}"), headers=headers, **rest)
    assert foreign.status_code == 404, foreign.text
    assert (foreign.status_code, foreign.content) == (missing.status_code, missing.content)
    for nonsense in ("x", "%00", "a%20b", "%F0%9F%92%A5", f"{prefix}_{'A' * 28}", f"{prefix}_' OR 1=1", "x" * 5000):
        answer = house.client.request(method, path.replace(f"{{{noun}}}", nonsense), headers=headers, **rest)
        assert answer.status_code == 404, nonsense


@pytest.mark.parametrize(("path", "method"), ROUTES)
def test_without_a_key_nobody_learns_what_is_there(house: House, path: str, method: str) -> None:
    answer = house.client.request(method, path.replace("{", "").replace("}", ""), **MORE.get((path, method), {}))
    assert answer.status_code == 401


def test_lists_show_only_what_is_mine(house: House) -> None:
    things(house)
    _, other = house.add_workspace()
    for path in ("/v1/jobs", "/v1/datasets"):
        assert house.client.get(path, headers=house.as_of(other)).json()["items"] == []
    shown = house.client.get("/v1/sources", headers=house.as_of(other)).json()["items"]
    assert {item["kind"] for item in shown} <= {"torchvision", "scratch"}
    assert len(house.client.get("/v1/keys", headers=house.as_of(other)).json()["items"]) == 1
    assert house.client.get("/v1/workspace", headers=house.as_of(other)).json()["stored_bytes"] == 0


def test_references_in_a_job_stay_in_the_workspace(house: House) -> None:
    mine = things(house)
    _, other = house.add_workspace()
    theirs = House(house.site, house.client, "", other)
    made = house.ask("POST", "/v1/datasets", content=a_zip(), headers=house.as_of(other)).json()["id"]
    for body in (
        {"dataset_id": mine["dataset"]},
        {"dataset_id": made, "sources": [mine["job"]]},
        {"dataset_id": made, "sources": [mine["source"]]},
        {"dataset_id": made, "teacher": mine["job"]},
    ):
        answer = theirs.ask("POST", "/v1/jobs", json=body | {"budget": {"trials": 1}})
        assert answer.status_code in (404, 409), answer.text
        assert answer.json().get("id") in (None, made)
