"""Cheap first tries: what they cost, who is promoted when, and what is refused."""

from typing import Any

import pytest

from domain.catalogue import catalogue
from domain.errors import Invalid
from domain.fidelity import Cheap, cheap_attrs, cheap_recipe, check_fidelity, due
from domain.job import Fidelity, JobSpec, Objective
from tests.unit.worker.conftest import make_spec

COUNTS = {"ant": {"train": 40, "val": 20}, "bee": {"train": 9, "val": 3}}


def spec_with(dimension: Any, low: float, promote: float = 1 / 3, **changes: Any) -> JobSpec:
    return make_spec(fidelity=Fidelity(dimension=dimension, low=low, promote=promote), **changes)


def test_a_fraction_sees_every_item_as_often_and_a_resolution_takes_all_steps() -> None:
    spec = spec_with("fraction", 0.3)
    values = spec.space.defaults() | {"source": spec.sources[0].ref, "steps": 400}
    recipe = spec.recipe(values, seed=1)
    cheap = cheap_recipe(Fidelity(dimension="fraction", low=0.3), recipe)
    assert (cheap.data.fraction, cheap.steps) == (0.3, 120)
    small = cheap_recipe(Fidelity(dimension="resolution", low=96), recipe)
    assert (small.data.resolution, small.steps) == (96, 400)
    put_back = small.model_copy(update={"data": small.data.model_copy(update={"resolution": recipe.data.resolution})})
    assert put_back == recipe, "nothing else is touched"
    assert cheap_attrs(Fidelity(dimension="resolution", low=96))["fidelity"] == {"data.resolution": 96}


def test_the_best_of_every_three_is_promoted_once() -> None:
    spec = spec_with("fraction", 0.5)  # more is better: accuracy
    ended = [Cheap(3, 0.5), Cheap(4, 0.7), Cheap(5, 0.6), Cheap(6, 0.9), Cheap(7, 0.7), Cheap(8, 0.1)]
    assert due(spec, ended[:2], [], last=False) is None
    assert due(spec, ended[:3], [], last=False) == 4
    assert due(spec, ended[:3], [4], last=False) is None
    assert due(spec, ended, [4], last=False) == 6
    assert due(spec, ended, [4, 6], last=False) is None
    assert due(spec, ended, [4, 6], last=True) == 7, "the last of a budget: it could not be promoted any more"
    assert due(spec, [], [], last=True) is None
    loss = spec.model_copy(update={"objectives": (Objective(name="log_loss"),)})
    assert due(loss, ended, [], last=False) == 8


@pytest.mark.parametrize("promote", [1.0, 0.5, 1 / 3, 0.1])
def test_the_part_that_is_promoted_is_what_was_asked_for(promote: float) -> None:
    spec = spec_with("fraction", 0.5, promote)
    ended: list[Cheap] = []
    promoted: list[int] = []
    for number in range(60):
        ended.append(Cheap(number, number * 37 % 60 / 60))
        while (of := due(spec, ended, promoted, last=False)) is not None:
            promoted.append(of)
    assert len(promoted) == round(60 * promote)
    assert len(set(promoted)) == len(promoted)


@pytest.mark.parametrize(
    ("dimension", "low", "said"),
    [
        ("resolution", 96.5, "whole number"),
        ("resolution", 16, "at least 32"),
        ("resolution", 96, "not below the smallest"),
        ("resolution", 500, "not below the smallest"),
        ("fraction", 0.0, "between 0 and 1"),
        ("fraction", 1.0, "between 0 and 1"),
        ("fraction", -0.5, "between 0 and 1"),
        ("fraction", 0.1, "fewer than 2 of bee"),
    ],
)
def test_what_cannot_be_tried_cheaply_is_refused_with_the_reason(dimension: str, low: float, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_fidelity(spec_with(dimension, low), catalogue(), COUNTS)
    assert refused.value.code == "bad_fidelity"
    assert said in refused.value.detail


def test_what_can_be_is_taken() -> None:
    check_fidelity(make_spec(), catalogue(), COUNTS)
    check_fidelity(spec_with("fraction", 0.2), catalogue(), COUNTS)  # ceil(0.2 * 9) = 2 bees
    check_fidelity(spec_with("resolution", 96, overrides={"data.resolution": [160, 224]}), catalogue(), COUNTS)
    check_fidelity(spec_with("resolution", 64), catalogue(), COUNTS)
    several = (Objective(name="accuracy"), Objective(name="latency_ms"))
    with pytest.raises(Invalid, match="one objective"):
        check_fidelity(spec_with("fraction", 0.2, objectives=several), catalogue(), COUNTS)
    with pytest.raises(Invalid):  # three folds of 12 bees: 8 train each fit
        check_fidelity(spec_with("fraction", 0.12, n_folds=3), catalogue(), COUNTS)
