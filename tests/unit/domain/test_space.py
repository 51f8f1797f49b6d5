import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from domain.errors import Invalid
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Space

SPACE = Space(
    dimensions=(
        Dimension(path="lr", range=FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2)),
        Dimension(path="depth", range=IntRange(low=0, high=4, default=0)),
        Dimension(path="slot", range=Choice(options=("a", "b"), default="a")),
        Dimension(
            path="slot.a.x",
            range=FloatRange(low=0, high=1, default=0.5),
            when=(Condition(path="slot", values=("a",)),),
        ),
    ),
    fixed={"name": "sgd"},
)  # fmt: skip


def test_defaults_leave_out_what_is_not_active() -> None:
    assert SPACE.defaults() == {"name": "sgd", "lr": 1e-2, "depth": 0, "slot": "a", "slot.a.x": 0.5}
    assert "slot.a.x" not in SPACE.changed({"slot": "b"}).defaults()


def test_a_value_fixes_a_dimension() -> None:
    narrowed = SPACE.changed({"lr": 0.05, "depth": 3})
    assert narrowed.fixed == {"name": "sgd", "lr": 0.05, "depth": 3}
    assert [d.path for d in narrowed.dimensions] == ["slot", "slot.a.x"]


def test_a_fixed_conditional_value_holds_only_under_its_condition() -> None:
    narrowed = SPACE.changed({"slot.a.x": 0.25})
    assert narrowed.defaults()["slot.a.x"] == 0.25
    assert "slot.a.x" not in narrowed.changed({"slot": "b"}).defaults()


def test_a_range_is_narrowed_and_its_default_moved_inside() -> None:
    lr = next(d for d in SPACE.changed({"lr": {"low": 0.05}}).dimensions if d.path == "lr").range
    assert isinstance(lr, FloatRange)
    assert (lr.low, lr.high, lr.default, lr.log) == (0.05, 0.1, 0.05, True)


def test_a_list_of_values_becomes_a_choice() -> None:
    depth = next(d for d in SPACE.changed({"depth": [1, 3]}).dimensions if d.path == "depth").range
    assert depth == Choice(options=(1, 3), default=1)


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ({"speed": 1}, "unknown_dimension"),
        ({"lr": 0.0}, "bad_dimension"),
        ({"lr": {"low": 0.05, "high": 0.01}}, "bad_dimension"),
        ({"lr": {"lowest": 0.05}}, "bad_dimension"),
        ({"lr": float("nan")}, "bad_dimension"),
        ({"lr": "fast"}, "bad_dimension"),
        ({"lr": True}, "bad_dimension"),
        ({"depth": 2.5}, "bad_dimension"),
        ({"depth": []}, "bad_dimension"),
        ({"slot": "c"}, "bad_dimension"),
        ({"slot": {"low": 1}}, "bad_dimension"),
        ({"name": "adamw"}, "bad_dimension"),
    ],
)
def test_what_is_not_in_the_space_is_refused_with_the_legal_values(override: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        SPACE.changed(override)
    assert refused.value.code == code


@given(low=st.floats(1e-3, 1e-1), high=st.floats(1e-3, 1e-1))
def test_narrowing_never_widens(low: float, high: float) -> None:
    if low > high:
        low, high = high, low
    narrowed = SPACE.changed({"lr": {"low": low, "high": high}})
    if "lr" in narrowed.fixed:
        assert math.isclose(float(narrowed.fixed["lr"]), low)
    else:
        lr = next(d for d in narrowed.dimensions if d.path == "lr").range
        assert isinstance(lr, FloatRange)
        assert 1e-3 <= lr.low <= lr.default <= lr.high <= 1e-1


LEGAL = {
    "lr": FloatRange(low=0.0, high=10.0, default=1.0), "depth": IntRange(low=0, high=9, default=0),
    "slot": Choice(options=("a", "b", "c"), default="a"), "name": Choice(options=("sgd", "adamw"), default="sgd"),
    "size": IntRange(low=1, high=512, log=True, default=8),
}  # fmt: skip


def changed(**overrides: Any) -> dict[str, Any]:
    """The ranges and the fixed values of a space that may go as far as is legal."""
    sizes = Dimension(path="size", range=Choice(options=(16, 32), default=32))
    space = SPACE.model_copy(update={"dimensions": (*SPACE.dimensions, sizes)}).changed(overrides, LEGAL)
    return {d.path: d.range for d in space.dimensions} | space.fixed


def test_a_dimension_is_searched_as_far_as_is_legal() -> None:
    assert changed(lr={"low": 1e-4, "high": 1})["lr"] == FloatRange(low=1e-4, high=1.0, log=True, default=1e-2)
    assert changed(depth={"high": 9})["depth"] == IntRange(low=0, high=9, default=0)
    assert changed(slot=["a", "c"])["slot"] == Choice(options=("a", "c"), default="a")
    assert changed(name=["sgd", "adamw"])["name"] == Choice(options=("sgd", "adamw"), default="sgd"), "it was fixed"
    assert changed(name="adamw")["name"] == "adamw"
    assert changed(size=256)["size"] == 256
    assert changed(size={"low": 8, "high": 256})["size"] == IntRange(low=8, high=256, log=True, default=32)


def test_an_end_that_is_left_out_stays_or_gives_way() -> None:
    assert (changed(lr={"high": 1})["lr"].low, changed(lr={"low": 0.5})["lr"].high) == (1e-3, 10.0)
    assert changed(lr={"low": 0.05})["lr"].high == 0.1


def test_numbers_become_what_the_dimension_holds() -> None:
    assert changed(lr=1)["lr"] == 1.0
    assert isinstance(changed(lr=1)["lr"], float)
    depth = changed(depth=3.0)["depth"]
    assert (depth, type(depth)) == (3, int)
    assert changed(depth=[5, 2.0, 5])["depth"] == Choice(options=(5, 2), default=2), "nearest to the old default"
    assert changed(lr=[0, 1])["lr"] == Choice(options=(0.0, 1.0), default=0.0)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"lr": 11}, "lr: 11 is not legal; give a number from 0 to 10"),
        ({"lr": [0.1, 11, True]}, "11, True is not legal"),
        ({"depth": "2"}, "'2' is not legal; give a whole number from 0 to 9"),
        ({"depth": {"low": 1, "high": 12}}, "need 0 <= low <= high <= 9, got low=1, high=12"),
        ({"lr": {"low": 0, "high": 1}}, "logarithmic scale, where low is above 0"),
        ({"slot": {"low": 1}}, "slot: give one of a, b, c"),
        ({"slot": []}, "an empty list"),
        ({"size": 1.5}, "a whole number from 1 to 512"),
    ],
)
def test_a_refusal_names_what_is_legal(override: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=re.escape(said)):
        changed(**override)


def test_a_switch_is_not_a_count() -> None:
    assert not Choice(options=(True, False), default=True).holds(1)
    assert not Choice(options=(0, 1), default=0).holds(True)


@pytest.mark.parametrize(
    "build",
    [
        lambda: FloatRange(low=1.0, high=0.0, default=0.5),
        lambda: FloatRange(low=0.0, high=1.0, log=True, default=0.5),
        lambda: FloatRange(low=0.0, high=math.inf, default=0.5),
        lambda: IntRange(low=0, high=4, default=5),
        lambda: Choice(options=("a",), default="b"),
        lambda: Choice(options=(), default="b"),
    ],
)
def test_impossible_ranges_cannot_be_built(build: Any) -> None:
    with pytest.raises(ValidationError):
        build()
