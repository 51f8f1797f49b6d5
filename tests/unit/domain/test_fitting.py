"""A recipe from elsewhere in the space of a job: worked by hand."""

import pytest

from domain.fitting import fitted
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Space

SPACE = Space(
    dimensions=(
        Dimension(path="source", range=Choice(options=("src_1", "src_2"), default="src_1")),
        Dimension(path="optimizer.lr_head", range=FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2)),
        Dimension(path="steps", range=IntRange(low=10, high=100, log=True, default=50)),
        Dimension(path="data.resolution", range=Choice(options=(96, 128, 224), default=224)),
        Dimension(path="head.kind", range=Choice(options=("linear", "mlp"), default="linear")),
        Dimension(path="regularizer", range=Choice(options=("l2_sp", "l2"), default="l2_sp")),
        Dimension(
            path="regularizer.l2_sp.alpha", range=FloatRange(low=1e-4, high=1.0, log=True, default=0.01),
            when=(Condition(path="regularizer", values=("l2_sp",)),),
        ),
        Dimension(path="feature", range=Choice(options=("delta", "none"), default="delta")),
    ),
    fixed={"batch_norm": "eval", "schedule": "freeze"},
)  # fmt: skip


def test_numbers_are_clipped_options_rounded_and_what_is_fixed_stands() -> None:
    found = fitted(
        SPACE,
        {
            "source": "job_old", "optimizer.lr_head": 0.5, "steps": 7, "data.resolution": 160, "head.kind": "deep",
            "regularizer": "l2_sp", "regularizer.l2_sp.alpha": 0.3, "batch_norm": "train", "schedule": "chain_thaw",
            "averaging": "none", "optimizer.stage_decay": 0.5,
        },
        source="src_2",
    )  # fmt: skip
    assert found == {
        "source": "src_2", "optimizer.lr_head": 0.1, "steps": 10, "data.resolution": 128, "head.kind": "linear",
        "regularizer": "l2_sp", "regularizer.l2_sp.alpha": 0.3, "feature": "none", "batch_norm": "eval",
        "schedule": "freeze",
    }  # fmt: skip
    assert isinstance(found["steps"], int)


def test_conditions_of_the_space_hold() -> None:
    found = fitted(SPACE, {"regularizer": "l2", "regularizer.l2_sp.alpha": 0.3}, source="src_1")
    assert found is not None
    assert found["regularizer"] == "l2"
    assert "regularizer.l2_sp.alpha" not in found
    assert found["optimizer.lr_head"] == 1e-2, "what it does not say is at its default"


@pytest.mark.parametrize("slot", ["regularizer", "feature"])
def test_another_part_would_be_another_recipe(slot: str) -> None:
    assert fitted(SPACE, {slot: "unheard_of"}, source="src_1") is None


def test_a_switch_is_no_number() -> None:
    space = Space(dimensions=(Dimension(path="data.flip", range=Choice(options=(True, False), default=True)),))
    assert fitted(space, {"data.flip": False}, source="x") == {"source": "x", "data.flip": False}
    assert fitted(space, {"data.flip": 0}, source="x") == {"source": "x", "data.flip": True}
