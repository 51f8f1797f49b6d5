"""A preset fills in what a request leaves out, and nothing else."""

from typing import Any

import pytest

from api.schemas.job import JobCreate, Spec
from domain.job import JobSpec
from domain.presets import PRESETS
from tests.house import House, check_problem

RESNET = ["torchvision:resnet18"]


def ask(house: House, **body: Any) -> Any:
    return house.ask("POST", "/v1/jobs", json={"dataset_id": house.add_dataset(), **body})


def spec_of(house: House, **body: Any) -> dict[str, Any]:
    answer = ask(house, **body)
    assert answer.status_code == 201, answer.text
    spec: dict[str, Any] = answer.json()["spec"]
    return spec


def given(budget: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in budget.items() if value is not None}


def test_a_dataset_alone_is_a_request(house: House) -> None:
    spec = spec_of(house)
    assert spec["preset"] == "balanced"
    assert given(spec["budget"]) == {"trials": 30, "wall_s": 7200}
    assert [s["ref"] for s in spec["sources"]] == list(PRESETS["balanced"].sources)
    assert spec["sampler_why"], "the sampler was chosen, and it says why"


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_stored_spec_shows_what_came_of_it(house: House, name: str) -> None:
    spec, chosen = spec_of(house, preset=name), PRESETS[name]
    assert given(spec["budget"]) == chosen.budget.model_dump(exclude_none=True)
    assert (spec["pruner"], spec["combine"]) == (chosen.pruner, chosen.combine)
    assert spec["n_folds"] == (chosen.n_folds or spec["n_folds"])
    assert (spec["confirm"] is not None) == (chosen.confirm is not None)
    assert (spec["fidelity"] is not None) == chosen.low_resolution
    assert {s["ref"] for s in spec["sources"]} == set(chosen.sources)


def test_whatever_a_request_names_stands(house: House) -> None:
    spec = spec_of(
        house, preset="best", budget={"trials": 5}, sources=RESNET, pruner="none", n_folds=1, confirm=False,
        combine=False, sampler="random", space={"steps": 20, "batch_norm": "train"},
    )  # fmt: skip
    assert given(spec["budget"]) == {"trials": 5}, "and none of the preset's hours"
    assert (spec["pruner"], spec["n_folds"], spec["confirm"], spec["combine"]) == ("none", 1, None, False)
    assert (spec["sampler"], spec["sampler_why"]) == ("random", "")
    assert (spec["space"]["fixed"]["steps"], spec["space"]["fixed"]["batch_norm"]) == (20, "train")
    assert sorted(spec["chosen"]) == ["batch_norm", "steps"]
    assert spec_of(house, preset="fast", fidelity=False, sources=RESNET)["fidelity"] is None


def test_a_target_alone_ends_with_the_presets_ends(house: House) -> None:
    spec = spec_of(house, preset="fast", budget={"target": 0.1, "patience": 4}, objective="log_loss")
    assert given(spec["budget"]) == {"trials": 12, "wall_s": 900, "target": 0.1, "patience": 4}


def test_a_sampler_that_cannot_do_this_search_is_refused(house: House) -> None:
    body = {"sampler": "cmaes", "objectives": ["accuracy", "size_bytes"], "budget": {"trials": 9}}
    check_problem(ask(house, **body), 422, "sampler_one_objective")


# What is stored for the trials alone, and said in other words or not at all.
INTERNAL = {"schema_version"}


def test_every_setting_that_is_stored_is_shown_and_can_be_asked_for(house: House) -> None:
    assert set(JobSpec.model_fields) - INTERNAL <= set(Spec.model_fields)
    found = {"task", "objective", "chosen", "sampler_why", "warm_starts"}  # by the service
    assert set(Spec.model_fields) - found <= set(JobCreate.model_fields)
    assert set(spec_of(house)) == set(Spec.model_fields)
