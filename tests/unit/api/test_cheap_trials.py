"""Pruners and cheap first tries in a request: what there is, what is stored, what is refused."""

from typing import Any

import pytest

from search.registry import names
from tests.house import House, check_problem
from tests.unit.api.test_submit import ask, spec_of


def test_a_request_may_name_every_pruner_there_is(house: House) -> None:
    """The API imports no search: its list is written out, and this keeps it true."""
    assert sorted(house.ask("GET", "/v1/methods").json()["pruners"]) == names("pruners")
    for name in names("pruners"):
        spec = spec_of(house, pruner=name, n_folds=3)
        assert spec.pruner == name


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"pruner": "wilcoxon"}, "pruner_needs_folds"),
        ({"pruner": "wilcoxon", "n_folds": 2}, "pruner_needs_folds"),
        ({"fidelity": {"dimension": "fraction", "low": 0.004}}, "bad_fidelity"),
        ({"fidelity": {"dimension": "fraction", "low": 1}}, "bad_fidelity"),
        ({"fidelity": {"dimension": "resolution", "low": 8}}, "bad_fidelity"),
        ({"fidelity": {"dimension": "resolution", "low": 224}}, "bad_fidelity"),
        ({"fidelity": {"dimension": "colour", "low": 1}}, "validation_error"),
        ({"fidelity": {"dimension": "fraction", "low": 0.3, "promote": 0}}, "validation_error"),
        ({"fidelity": {"dimension": "fraction"}}, "validation_error"),
    ],
)
def test_what_cannot_be_done_is_refused(house: House, body: dict[str, Any], code: str) -> None:
    sources = {"sources": ["torchvision:resnet18"], "n_folds": 1}
    check_problem(ask(house, **sources | body), 422, code)


def test_what_was_asked_for_is_stored_and_told(house: House) -> None:
    body = {"pruner": "wilcoxon", "n_folds": 3, "fidelity": {"dimension": "fraction", "low": 0.3}}
    spec = spec_of(house, **body)
    assert (spec.pruner, spec.n_folds) == ("wilcoxon", 3)
    assert spec.fidelity is not None
    assert (spec.fidelity.dimension, spec.fidelity.low) == ("fraction", 0.3)
    told = ask(house, **body).json()["spec"]
    assert told["fidelity"] == {"dimension": "fraction", "low": 0.3, "promote": pytest.approx(1 / 3)}
