"""Pairs and aims from records put together by hand."""

import math
from typing import Any

import numpy as np
import pytest

from benchmarks.search_table import aims, figures_of, pairs_of, shown_of

BUDGET = 90.0


def entry(contender: str, seed: int, told: list[tuple[float, float]], n_right: int, n: int = 400, **more: Any) -> Any:
    """A contender whose val log-loss went as told, with `n_right` right answers on test, the first ones."""
    text = "1" * n_right + "0" * (n - n_right)
    found = [
        {"t": t, "val": {"log_loss": loss, "accuracy": 0.5}, "test": {"log_loss": loss, "accuracy": n_right / n},
         "right": text}
        for t, loss in told
    ]  # fmt: skip
    record = {"key": f"{contender}{seed}", "case": "toy, 5 per class", "seed": seed, "contender": contender}
    return record | {
        "budget_s": BUDGET, "n_classes": 4, "error": None, "incumbents": found, "searched_s": 80.0, "others": {},
        "facts": {},
    } | more  # fmt: skip


def graft(seed: int, told: list[tuple[float, float]], n_right: int, **more: Any) -> Any:
    return entry("graft", seed, told, n_right, **more)


def test_passing_is_the_first_incumbent_as_good_as_the_rival_in_the_end() -> None:
    records = [graft(0, [(10, 0.9), (20, 0.6), (70, 0.3)], 300), entry("random", 0, [(5, 1.0), (80, 0.6)], 280)]
    (pair,) = pairs_of(records, BUDGET)
    assert pair.passed_s == 20
    assert not pair.never


def test_the_aim_is_the_median_over_pairs_where_never_is_the_whole_budget() -> None:
    records = []
    for seed, at in enumerate([10.0, 29.0, 95.0]):  # the last one too late
        records += [graft(seed, [(5, 0.9), (at, 0.4)], 300), entry("random", seed, [(50, 0.5)], 280)]
    found = {f.figure: f for f in aims(pairs_of(records, BUDGET), BUDGET)}
    told = found["median time to pass random on val"]
    assert (told.value, told.holds) == (29.0, True)
    assert told.columns == {"n_pairs": 3, "n_never": 1}


def test_a_rival_without_pairs_has_no_value_and_no_verdict() -> None:
    failed = entry("ray_asha", 0, [], 0, error="RuntimeError: not installed")
    found = {f.figure: f for f in aims(pairs_of([graft(0, [(5, 0.4)], 300), failed], BUDGET), BUDGET)}
    assert found["median time to pass ray_asha on val"].holds is None
    assert "not installed" in shown_of([graft(0, [(5, 0.4)], 300), failed], BUDGET)


def test_the_difference_on_test_needs_a_thousand_items() -> None:
    def records(n_seeds: int) -> list[Any]:
        return [r for s in range(n_seeds) for r in (graft(s, [(5, 0.4)], 320), entry("expert_bit", s, [(9, 0.4)], 300))]

    few = {f.figure: f for f in aims(pairs_of(records(2), BUDGET), BUDGET)}
    assert few["test accuracy over expert_bit, mean"].holds is None
    enough = {f.figure: f for f in aims(pairs_of(records(3), BUDGET), BUDGET)}
    mean, low = enough["test accuracy over expert_bit, mean"], enough["test accuracy over expert_bit, lower bound"]
    assert mean.value == pytest.approx(5.0)
    assert mean.columns["n_items"] == 1200
    # 20 of 400 items differ in each of three pairs
    error = 100 * math.sqrt(0.05 * 0.95 / 1200)
    assert low.value == pytest.approx(5.0 - 1.96 * error, abs=0.15)
    assert low.holds


def test_level_with_the_expert_is_not_above_it() -> None:
    records = [r for s in range(3) for r in (graft(s, [(5, 0.4)], 300), entry("expert_l2_sp", s, [(9, 0.4)], 300))]
    found = {f.figure: f for f in aims(pairs_of(records, BUDGET), BUDGET)}
    assert found["test accuracy over expert_l2_sp, mean"].holds is False
    assert found["test accuracy over expert_l2_sp, lower bound"].holds is True


def test_the_best_anchor_is_the_one_that_val_would_have_chosen() -> None:
    others = {"linear_probe": "1" * 200 + "0" * 200, "l2_sp": "1" * 310 + "0" * 90}
    facts = {"anchors_val": {"linear_probe": 0.3, "l2_sp": 0.5, "fine_tuning": 0.1}}  # the last left no predictions
    (pair,) = pairs_of([graft(0, [(5, 0.2)], 300, others=others, facts=facts)], BUDGET)
    assert pair.difference is not None
    assert pair.difference.mean() == pytest.approx(0.25)


def test_an_incumbent_without_test_predictions_is_left_out_of_test_over_time() -> None:
    fit = entry("autogluon", 0, [(10, 0.8), (60, 0.4)], 200)
    del fit["incumbents"][0]["test"], fit["incumbents"][0]["right"]
    found = {f.figure: f for f in figures_of([fit], BUDGET)}
    chance = np.log(4)
    name = "toy, 5 per class, seed 0, autogluon"
    assert found[f"{name}: val log-loss, mean over time"].value == pytest.approx(
        (10 * chance + 50 * 0.8 + 30 * 0.4) / 90
    )
    assert found[f"{name}: test log-loss, mean over time"].value == pytest.approx((60 * chance + 30 * 0.4) / 90)
