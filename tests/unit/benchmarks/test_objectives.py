"""Sobol recipes, formulas whose optimum is known, and surrogates of tables made by hand."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.objectives import FORMULAS, curve_of, encoded, replay
from benchmarks.optimizers import Series, search_once
from benchmarks.record import recipe_space, sobol_values
from domain.space import Choice, Condition, Dimension, FloatRange, Space
from search.registry import names

SPACE = recipe_space(n_stages=3, steps=100, resolution=32)


def test_sobol_recipes_lie_in_the_space_and_leave_inactive_dimensions_out() -> None:
    for values in sobol_values(SPACE, 64):
        active = {d.path for d in SPACE.dimensions if d.active(values)}
        assert set(values) == active | set(SPACE.fixed)
        assert all(d.range.holds(values[d.path]) for d in SPACE.dimensions if d.path in active)


def test_sobol_recipes_are_even_at_every_power_of_two() -> None:
    for n in (16, 32, 64):
        rates = [math.log(float(values["optimizer.lr_head"])) for values in sobol_values(SPACE, n)]
        counts = np.histogram(rates, bins=8, range=(math.log(1e-3), math.log(0.3)))[0]
        assert set(counts) == {n // 8}
        assert sobol_values(SPACE, n) == sobol_values(SPACE, 64)[:n]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_nowhere_below_its_best(name: str) -> None:
    objective = FORMULAS[name](3)
    losses = [objective.answer(values)[-1][1] for values in sobol_values(objective.space, 256)]
    assert min(losses) > objective.best == 0
    assert objective.usual == pytest.approx(float(np.median(losses)), rel=0.2)


def run(lr: float, kind: str, loss: float) -> dict[str, Any]:
    values: dict[str, Any] = {"lr": lr, "kind": kind} | ({"strength": 0.5} if kind == "a" else {})
    return {
        "values": values,
        "val": [0.5, loss],
        "curve": [[0.2, 0.1, 2 * loss], [0.6, 0.3, loss], [1.0, 0.4, 1.5 * loss]],
    }


def test_a_curve_begins_at_chance_and_ends_with_the_best_evaluation() -> None:
    found = curve_of(run(0.1, "a", 0.4), n_classes=10)
    # chance is ln 10; straight lines to (0.2, 0.8), (0.6, 0.4), (1.0, 0.6); the end is the best evaluation, 0.4
    assert found == pytest.approx([(math.log(10) + 0.8) / 2, 0.8, 0.7, 0.6, 0.5, 0.4, 0.45, 0.5, 0.55, 0.4])


def test_a_failed_run_ends_twice_as_bad_as_chance() -> None:
    failed = {"values": {}, "curve": [[0.2, 0.1, 3.0]]}
    assert curve_of(failed, n_classes=4)[-1] == pytest.approx(2 * math.log(4))


def toy_table(rng: np.random.Generator, noise: float, n: int = 160) -> dict[str, Any]:
    """Log-loss falls with the distance of the rate from 1e-2, and kind b costs a little."""
    space = Space(dimensions=(
        Dimension(path="lr", range=FloatRange(low=1e-4, high=1.0, log=True, default=1e-2)),
        Dimension(path="kind", range=Choice(options=("a", "b"), default="a")),
        Dimension(path="strength", range=FloatRange(low=0, high=1, default=0.5),
                  when=(Condition(path="kind", values=("a",)),)),
    ))  # fmt: skip
    runs = []
    for _ in range(n):
        lr, kind = float(10 ** rng.uniform(-4, 0)), str(rng.choice(["a", "b"]))
        runs.append(run(lr, kind, 0.2 + 0.1 * (math.log10(lr) + 2) ** 2 + 0.05 * (kind == "b") + noise * rng.uniform()))
    return {"name": "toy", "n_classes": 4, "space": space.model_dump(mode="json"), "runs": runs}


def test_inactive_dimensions_are_told_from_every_value() -> None:
    space = Space.model_validate(toy_table(np.random.default_rng(0), 0.0, 2)["space"])
    assert encoded(space, {"lr": 1e-2, "kind": "b"}) == pytest.approx([math.log(1e-2), 1.0, -1e3])


def test_a_surrogate_of_a_smooth_table_stands_and_one_of_noise_does_not() -> None:
    rng = np.random.default_rng(0)
    smooth, noise = replay(toy_table(rng, 0.0)), replay(toy_table(rng, 50.0))
    assert smooth.stands
    assert smooth.spearman > 0.95
    assert not noise.stands
    near, far = ({"lr": lr, "kind": "a", "strength": 0.5} for lr in (1e-2, 0.9))
    assert smooth.objective.answer(near)[-1][1] < 0.3 < smooth.objective.answer(far)[-1][1]


@pytest.mark.parametrize("pruner", ["none", "halving"])
def test_a_replayed_search_spends_its_budget_and_no_more(pruner: str) -> None:
    table = replay(toy_table(np.random.default_rng(0), 0.0))
    asks: list[float] = []
    found = search_once(table.objective, Series("toy", "random", pruner, 1, 20), 0, asks)
    assert found[-1][0] <= 20
    assert [loss for _, loss in found] == sorted((loss for _, loss in found), reverse=True)
    # Whole trials cost one each; halving tries more recipes for the same.
    assert len(asks) == 20 if pruner == "none" else len(asks) > 25


@pytest.mark.parametrize("sampler", [s for s in names("samplers") if s != "gp"])
def test_every_registered_sampler_can_be_replayed(sampler: str) -> None:
    objective = FORMULAS["conditional"](0)
    found = search_once(objective, Series("conditional", sampler, "none", 1, 12), 0, [])
    assert found
    assert found[-1][1] < objective.usual
