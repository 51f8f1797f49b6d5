import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from domain.catalogue import catalogue
from tests.house import House, check_problem

WEIGHTS = save({"conv1.weight": np.zeros((2, 3), dtype=np.float32)})


def register(house: House, data: bytes = WEIGHTS, headers: dict[str, str] | None = None, **query: str) -> Any:
    return house.ask(
        "POST", "/v1/sources", params={"backbone": "resnet18"} | query, content=data, headers=headers or {}
    )


def test_register_show_list_delete(house: House) -> None:
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    answer = register(
        house, name="mine", licence="MIT", classes='["a", "b"]', headers={"X-Checksum-Sha256": sha256.upper()}
    )
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/v1/sources/{made['id']}"
    assert (made["kind"], made["ref"], made["backbone"]) == ("registered", made["id"], "resnet18")
    assert (made["n_classes"], made["classes"], made["licence"], made["sha256"]) == (2, ["a", "b"], "MIT", sha256)
    assert house.ask("GET", f"/v1/sources/{made['id']}").json() == made
    assert house.ask("GET", "/v1/sources").json()["items"][0] == made
    (key,) = house.site.blobs.keys()
    assert b"".join(house.site.blobs.read(key)) == WEIGHTS
    assert list(house.site.uploads.iterdir()) == []
    assert house.ask("DELETE", f"/v1/sources/{made['id']}").status_code == 204
    assert list(house.site.blobs.keys()) == []
    check_problem(house.ask("GET", f"/v1/sources/{made['id']}"), 404, "source_not_found")


@pytest.mark.parametrize("name", ["fc.weight", "head.weight"])
def test_the_width_of_a_head_is_read_from_the_file(house: House, name: str) -> None:
    data = save({name: np.zeros((7, 3), dtype=np.float32)})
    assert register(house, data).json()["n_classes"] == 7
    assert register(house, data, classes=json.dumps(list("abcdefg"))).json()["n_classes"] == 7
    problem = check_problem(register(house, data, classes='["a", "b"]'), 422, "classes_differ")
    assert "7 classes" in problem["detail"]
    assert register(house).json()["n_classes"] == 0


def test_a_source_in_use_stays(house: House) -> None:
    source = register(house).json()["id"]
    body = {"dataset_id": house.add_dataset(), "budget": {"trials": 1}, "sources": [source]}
    job = house.ask("POST", "/v1/jobs", json=body).json()["id"]
    assert check_problem(house.ask("DELETE", f"/v1/sources/{source}"), 409, "still_needed")["needed_by"] == [job]


def test_the_list_ends_with_published_weights_and_scratch(house: House) -> None:
    own = [register(house).json()["id"] for _ in range(3)][::-1]
    refs, cursor = [], None
    while True:
        page = house.ask("GET", "/v1/sources", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["items"]) <= 2
        refs += [item["ref"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    backbones = catalogue().backbones
    published = [f"torchvision:{b.name}" for b in backbones for _ in b.weights]
    assert refs == own + published + [f"scratch:{b.name}" for b in backbones]
    one = next(i for i in house.ask("GET", "/v1/sources").json()["items"] if i["ref"] == "torchvision:resnet18")
    assert one["n_classes"] == 1000


def header(text: bytes, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"PK\x03\x04" + b"\0" * 60,  # as torch.save writes it
        b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        struct.pack("<Q", 2**62) + b"{}",
        header(b"not json"),
        header(b"[" * 5000),
        header(b"{}"),
        header(json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(), b"\0" * 4),
        header(json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode(), b"\0" * 9),
        WEIGHTS[:-1],
    ],
)
def test_anything_but_safetensors_is_refused(house: House, data: bytes) -> None:
    check_problem(register(house, data), 422, "model_format_unsafe")
    assert list(house.site.uploads.iterdir()) == []
    assert list(house.site.blobs.keys()) == []


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ({"backbone": "resnet9000"}, {}, 422, "unknown_backbone"),
        ({"classes": "a,b"}, {}, 400, "malformed_json"),
        ({"classes": '{"a": 1}'}, {}, 422, "validation_error"),
        ({"classes": '["a", "a"]'}, {}, 422, "validation_error"),
        ({"classes": '["a\\u0000"]'}, {}, 400, "malformed_json"),
        ({"licence": "\0"}, {}, 422, "validation_error"),
        ({}, {"X-Checksum-Sha256": "0" * 64}, 422, "checksum_mismatch"),
        ({}, {"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
        ({}, {"Content-Type": "application/zip"}, 415, "unsupported_media_type"),
    ],
)
def test_refusals(house: House, query: dict[str, str], headers: dict[str, str], status: int, code: str) -> None:
    found = check_problem(register(house, headers=headers, **query), status, code)
    if code == "unknown_backbone":
        assert "resnet18" in found["legal"]
    assert house.ask("GET", "/v1/sources").json()["items"][0]["kind"] == "torchvision"
    assert list(house.site.blobs.keys()) == []
