"""The document is complete: a client can be written from it alone."""

import json
import re
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from pydantic import TypeAdapter

from api.app import create_app
from api.schemas.dataset import Dataset
from api.schemas.event import Events
from api.schemas.health import Live, Ready
from api.schemas.job import BudgetMore, Cancel, Job, JobCreate
from api.schemas.key import Key, KeyCreate, NewKey, Workspace
from api.schemas.method import Methods
from api.schemas.source import Source
from api.schemas.trial import Curve, Trial
from store.settings import Settings
from tests.house import House

METHODS = {"get", "put", "post", "delete", "options", "head", "patch"}
OPEN = {"/healthz", "/readyz", "/metrics"}  # and OPTIONS /v1/uploads


@cache
def document() -> dict[str, Any]:
    return create_app(Settings(home=Path(mkdtemp()))).openapi()


def operations() -> list[Any]:
    return [
        pytest.param(path, method, id=f"{method.upper()} {path}")
        for path, item in document()["paths"].items()
        for method in sorted(METHODS & set(item))
    ]


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def test_every_noun_is_there() -> None:
    nouns = {path.split("/")[2] for path in document()["paths"] if path.startswith("/v1/")}
    assert nouns == {"datasets", "uploads", "sources", "jobs", "trials", "methods", "keys", "workspace"}
    assert set(document()["paths"]) >= OPEN


@pytest.mark.parametrize(("path", "method"), operations())
def test_every_operation_is_complete(path: str, method: str) -> None:
    operation = document()["paths"][path][method]
    assert operation["summary"]
    assert operation["description"]
    assert operation["operationId"]
    assert operation["tags"]
    good = [status for status in operation["responses"] if status.startswith("2")]
    assert good
    for status in good:
        answer = operation["responses"][status]
        assert status == "204" or method == "head" or answer.get("content") or answer.get("headers"), status
        for kind, content in answer.get("content", {}).items():
            schema = resolve(content.get("schema", {}))
            assert schema, (status, kind)
            binary = schema.get("format") == "binary"
            page = "items" in schema.get("properties", {})
            assert binary or page or "example" in content or schema.get("examples"), (status, kind, "no example")


@pytest.mark.parametrize(("path", "method"), operations())
def test_every_error_is_a_problem_with_an_example(path: str, method: str) -> None:
    operation = document()["paths"][path][method]
    errors = {s: r for s, r in operation["responses"].items() if s == "default" or s[0] in "45"}
    assert "default" in errors
    for status, answer in errors.items():
        if path == "/readyz" and status == "503":
            continue  # it tells what is not ready
        (content,) = (answer["content"][kind] for kind in answer["content"])
        assert list(answer["content"]) == ["application/problem+json"], status
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert status == "default" or content["example"]["status"] == int(status)
    if path not in OPEN and (path, method) != ("/v1/uploads", "options"):
        assert operation["security"]
        assert {"401", "503"} <= set(errors)
    if "{" in path and method != "put":
        assert "404" in errors


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(document())
    assert "HTTPValidationError" not in text
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= set(document()["components"]["schemas"])


def test_operation_ids_are_unique() -> None:
    ids = [o["operationId"] for item in document()["paths"].values() for m, o in item.items() if m in METHODS]
    assert len(ids) == len(set(ids))


def test_paths_differ_in_more_than_the_name_of_a_parameter() -> None:
    shapes = ["/".join("{}" if part.startswith("{") else part for part in p.split("/")) for p in document()["paths"]]
    assert len(shapes) == len(set(shapes))


@pytest.mark.parametrize(
    "model",
    [Dataset, Events, Live, Ready, BudgetMore, Cancel, Job, JobCreate, Key, KeyCreate, NewKey, Workspace, Methods,
     Source, Curve, Trial],
)  # fmt: skip
def test_examples_are_what_they_are_examples_of(model: Any) -> None:
    examples = model.model_config["json_schema_extra"]["examples"]
    assert examples
    for example in examples:
        TypeAdapter(model).validate_python(example)


def test_the_documentation_page_loads_nothing_from_elsewhere(house: House) -> None:
    page = house.client.get("/docs")
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    for source in sources:
        assert source.startswith("/"), source
        assert house.client.get(source).status_code == 200
