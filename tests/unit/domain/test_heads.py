"""Which recipes train a head and nothing else."""

from typing import Any

import pytest

from domain.heads import cuts, head_key, n_frozen
from domain.recipe import Recipe
from domain.space import Choice, Dimension, IntRange, Space
from tests.toys import make_recipe

N_STAGES = 4
FIXED = {"augmentation": 0.0, "flip": False}


def head(depth: int = 9, **given: Any) -> Recipe:
    data = {**FIXED, **given.pop("data", {})}
    return make_recipe(schedule=("freeze", {"depth": depth}), data=data, **given)


def test_heads_that_differ_in_rates_penalties_and_seeds_have_one_key() -> None:
    alike = [
        head(), head(seed=7), head(optimizer={"lr_head": 0.5, "momentum": 0.0}), head(data={"label_smoothing": 0.1}),
        head(regularizer=("l2", {"beta": 0.1})),
    ]  # fmt: skip
    assert {head_key(recipe, N_STAGES) for recipe in alike} == {head_key(head(), N_STAGES)}
    others = [head(steps=99), head(data={"batch_size": 3}), head(data={"flip": True, "views": 2}), head(10)]
    assert len({head_key(recipe, N_STAGES) for recipe in (head(), *others)}) == 5


@pytest.mark.parametrize(
    "recipe",
    [
        head(N_STAGES - 1), head(data={"flip": True}), head(data={"mixup_alpha": 0.2}), head(data={"fraction": 0.5}),
        head(head={"kind": "mlp"}), head(optimizer={"name": "adamw"}), head(feature=("delta", {})),
        make_recipe(data=FIXED), make_recipe(schedule=("linear_probe", {}), data=FIXED),
        make_recipe(source="scratch:smallnet", schedule=("freeze", {}), data=FIXED),
    ],
)  # fmt: skip
def test_what_trains_more_or_shows_no_end_of_looks_has_none(recipe: Recipe) -> None:
    assert head_key(recipe, N_STAGES) is None


def test_stages_that_no_phase_trains() -> None:
    found = [n_frozen(recipe, N_STAGES) for recipe in (head(0), head(2), head(9), make_recipe())]
    assert found == [0, 2, N_STAGES, 0]
    assert n_frozen(make_recipe(schedule=("linear_probe", {})), N_STAGES) == N_STAGES
    assert n_frozen(make_recipe(schedule=("freeze", {})), N_STAGES) == 0


def test_a_space_says_where_its_recipes_cut() -> None:
    path = "schedule.freeze.depth"
    assert cuts(Space(dimensions=(Dimension(path=path, range=IntRange(low=1, high=3, default=1)),))) == (1, 2, 3)
    assert cuts(Space(dimensions=(Dimension(path=path, range=Choice(options=(4, 0), default=4)),))) == (0, 4)
    assert cuts(Space(dimensions=(), fixed={path: 2})) == (2,)
    assert cuts(Space(dimensions=())) == ()
