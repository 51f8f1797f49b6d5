"""Regret, ranks, times and areas on numbers worked out by hand."""

import math

import numpy as np
import pytest

from benchmarks.search_maths import (
    area,
    incumbents,
    loss_at,
    mean_ranks,
    normalised,
    paired_span,
    span,
    time_to_reach,
    wins,
)

FOUND = [(2.0, 0.8), (5.0, 0.5), (9.0, 0.4)]


def test_an_incumbent_is_only_what_beats_everything_before() -> None:
    told = [(3.0, 0.5), (1.0, 0.9), (2.0, 1.2), (4.0, 0.5), (5.0, math.nan), (6.0, 0.1)]
    assert incumbents(told) == [(1.0, 0.9), (3.0, 0.5), (6.0, 0.1)]


def test_the_loss_holds_until_something_better_comes() -> None:
    assert [loss_at(FOUND, at, 1.6) for at in (0.0, 1.9, 2.0, 4.9, 9.0, 20.0)] == [1.6, 1.6, 0.8, 0.8, 0.4, 0.4]


@pytest.mark.parametrize(("loss", "expected"), [(0.9, 2.0), (0.5, 5.0), (0.45, 9.0), (0.39, 10.0)])
def test_time_to_reach_is_the_first_time_as_good_and_never_is_the_budget(loss: float, expected: float) -> None:
    assert time_to_reach(FOUND, loss, budget=10.0) == expected


def test_what_comes_after_the_budget_does_not_count_as_reached() -> None:
    assert time_to_reach(FOUND, 0.4, budget=8.0) == 8.0


def test_area_is_the_mean_loss_over_the_budget() -> None:
    # 2 s at 1.6, 3 s at 0.8, 4 s at 0.5, 1 s at 0.4, over 10 s
    assert area(FOUND, 10.0, before=1.6) == pytest.approx((3.2 + 2.4 + 2.0 + 0.4) / 10)
    assert area(FOUND, 4.0, before=1.6) == pytest.approx((3.2 + 1.6) / 4)
    assert area([], 4.0, before=1.6) == pytest.approx(1.6)


def test_regret_is_zero_at_the_best_and_one_at_the_usual() -> None:
    assert [normalised(loss, best=0.2, usual=0.6) for loss in (0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0.5, 1, 2])


def test_ranks_share_ties() -> None:
    losses = {"a": [1.0, 2.0, 3.0], "b": [2.0, 2.0, 1.0], "c": [3.0, 5.0, 2.0]}
    # columns: a 1, b 2, c 3; a 1.5, b 1.5, c 3; b 1, c 2, a 3
    assert mean_ranks(losses) == pytest.approx({"a": 5.5 / 3, "b": 4.5 / 3, "c": 8 / 3})


def test_wins_share_ties_and_add_up_to_one() -> None:
    found = wins({"a": [1.0, 2.0, 3.0], "b": [2.0, 2.0, 1.0], "c": [3.0, 5.0, 2.0]})
    assert found == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0})


def test_a_span_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    found = span(values)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - 0.098, values.mean() + 0.098), abs=0.015)


def test_paired_bounds_of_one_pair_follow_the_items() -> None:
    # 30 items only ours got right, 10 only the other, 160 both or none: mean 0.1, variance 0.2 - 0.01
    pair = np.repeat([1.0, -1.0, 0.0], [30, 10, 160])
    found = paired_span([pair])
    assert found.mean == pytest.approx(0.1)
    error = math.sqrt(0.19 / 200)
    assert (found.low, found.high) == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error), abs=0.01)


def test_every_pair_weighs_the_same_however_many_items_it_has() -> None:
    pairs = [np.ones(10), np.zeros(1000), -np.ones(100)]
    assert paired_span(pairs).mean == pytest.approx(0.0)
    assert paired_span(pairs[:2]) == pytest.approx((0.5, 0.5, 0.5))
