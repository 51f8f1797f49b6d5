"""What a job may rank by and limit: every refusal says what to change."""

from typing import Any

import pytest

from domain.job import Limit
from tests.house import STATISTICS, House, ask, check_problem, spec_of

KNOWN = ["cat", "dog"]


def add_source_dataset(house: House, classes: list[str] = KNOWN, n_test: int = 10) -> str:
    statistics = STATISTICS | {"per_split": {"train": 80, "val": 20, "test": n_test}}
    summary = {"classes": classes, "statistics": statistics, "n_findings": 0}
    return house.add_dataset(content_hash="cd" * 32, summary=summary)


def test_the_first_ranks_and_the_rest_follows(house: House) -> None:
    spec = spec_of(house, objectives=["auc", "latency_ms"], limits={"size_bytes": {"at_most": 5e6}})
    assert spec.objective.name == "auc"
    assert [o.name for o in spec.objectives] == ["auc", "latency_ms"]
    assert spec.limits == (Limit(objective="size_bytes", at_most=5e6),)
    alone = spec_of(house, objective="macro_f1")
    assert [o.name for o in alone.objectives] == ["macro_f1"]
    assert spec_of(house).objective.name in ("log_loss", "accuracy")


def test_a_job_shows_what_it_ranks_by(house: House) -> None:
    shown = ask(house, objectives=["accuracy", "size_bytes"], limits={"latency_ms": {"at_most": 20}}).json()["spec"]
    assert (shown["objective"], shown["objectives"]) == ("accuracy", ["accuracy", "size_bytes"])
    assert shown["limits"] == {"latency_ms": {"at_most": 20, "at_least": None}}


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"objective": "latency_ms"}, "validation_error", "objective"),
        ({"objectives": ["latency_ms", "accuracy"]}, "bad_objectives", "latency_ms cannot come first"),
        ({"objectives": ["accuracy", "fame"]}, "validation_error", "latency_ms"),
        ({"objectives": ["accuracy", "auc", "accuracy"]}, "bad_objectives", "accuracy is named twice"),
        ({"objectives": ["accuracy", "auc", "latency_ms", "size_bytes"]}, "bad_objectives", "at most 3"),
        ({"objectives": ["accuracy"], "objective": "auc"}, "bad_objectives", "not both"),
        ({"limits": {"latency_ms": {}}}, "bad_limit", "limits.latency_ms: give at_most or at_least"),
        ({"limits": {"latency_ms": {"at_most": 1, "at_least": 2}}}, "bad_limit", "give at_most or at_least"),
        ({"limits": {"latency_ms": {"at_least": 3}}}, "bad_limit", "less is better: limit it with at_most"),
        ({"limits": {"accuracy": {"at_most": 0.5}}}, "bad_limit", "more is better: limit it with at_least"),
        ({"limits": {"size_bytes": {"at_most": -1}}}, "bad_limit", "above zero"),
        ({"limits": {"fame": {"at_most": 1}}}, "validation_error", "limits"),
        (
            {"objectives": ["accuracy", "latency_ms"], "fidelity": {"dimension": "fraction", "low": 0.25}},
            "bad_fidelity",
            "one objective",
        ),
        ({"objectives": ["accuracy", "source_accuracy"]}, "source_accuracy_needs_dataset", "source_dataset_id"),
        ({"limits": {"source_accuracy": {"at_least": 0.5}}}, "source_accuracy_needs_dataset", "source_dataset_id"),
    ],
)
def test_refusals(house: House, body: dict[str, Any], code: str, said: str) -> None:
    answer = ask(house, **body)
    check_problem(answer, 422, code)
    assert said in answer.text
    assert house.ask("GET", "/v1/jobs").json()["items"] == []


def test_what_is_left_of_a_source_needs_a_head_that_knows_the_classes(house: House) -> None:
    knows = house.add_source(classes=KNOWN)
    asked = {"objectives": ["accuracy", "source_accuracy"], "source_dataset_id": add_source_dataset(house)}
    assert spec_of(house, **asked, sources=[knows]).objectives[1].name == "source_accuracy"
    for source, code in [
        ("scratch:resnet18", "source_accuracy_needs_head"), (house.add_source(), "source_accuracy_needs_head"),
        ("torchvision:resnet18", "source_accuracy_classes_differ"),
        (house.add_source(classes=KNOWN[::-1]), "source_accuracy_classes_differ"),
    ]:  # fmt: skip
        check_problem(ask(house, **asked, sources=[knows, source]), 422, code)
    asked["source_dataset_id"] = add_source_dataset(house, n_test=0)
    check_problem(ask(house, **asked, sources=[knows]), 422, "source_accuracy_needs_dataset")
