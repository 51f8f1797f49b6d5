"""The portfolio of past recipes: worked numbers, brute force, and what it promises to the sampler."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from domain.history import Meta, PastJob, PastTrial
from domain.job import Budget, Values
from domain.space import Choice, Condition, Dimension, FloatRange, Space
from search import warm
from search.warm import closeness, cover, distance, estimates, nearest, portfolio, room, weighed, worth

SPACE = Space(
    dimensions=(
        Dimension(path="source", range=Choice(options=("src_1",), default="src_1")),
        Dimension(path="x", range=FloatRange(low=0.0, high=1.0, default=0.5)),
        Dimension(path="lr", range=FloatRange(low=1e-4, high=1.0, log=True, default=1e-2)),
        Dimension(path="regularizer", range=Choice(options=("l2", "l2_sp"), default="l2")),
        Dimension(
            path="regularizer.l2_sp.alpha", range=FloatRange(low=0.0, high=1.0, default=0.5),
            when=(Condition(path="regularizer", values=("l2_sp",)),),
        ),
    )
)  # fmt: skip


def a_meta(**changes: Any) -> Meta:
    facts = {
        "n_train": 1000, "n_classes": 10, "per_class_mean": 100.0, "per_class_min": 64, "resolution": 128,
        "backbone": "resnet18", "probe_accuracy": 0.7, "chance": 0.1,
    }  # fmt: skip
    return Meta.model_validate(facts | changes)


def a_trial(number: int, value: float, *, anchor: str | None = None, **values: Any) -> PastTrial:
    return PastTrial(number=number, value=value, anchor=anchor, backbone="resnet18",
                     values={"source": "src_old", "x": 0.5, "lr": 0.01, "regularizer": "l2"} | values)  # fmt: skip


def a_job(name: str, direction: str = "maximize", **meta: Any) -> PastJob:
    return PastJob.model_validate({"id": name, "meta": a_meta(**meta), "direction": direction})


def ask(near: list[warm.Near], n: int = 5, **more: Any) -> list[int]:
    """The trials that are proposed, by number."""
    return [s.trial.number for s in portfolio(SPACE, near, n, source_of=lambda _: "src_1", **more)]


def test_distance_counts_factors_of_sizes_and_shares_of_skill() -> None:
    assert distance(a_meta(), a_meta()) == 0.0
    # Four times the items and of the smallest class: two units among five features.
    assert distance(a_meta(), a_meta(n_train=4000, per_class_min=256)) == pytest.approx(math.sqrt(2 / 5))
    # Skill (0.7 - 0.1) / 0.9 against 0: 2/3 of the way, in steps of 0.2.
    assert distance(a_meta(), a_meta(probe_accuracy=0.1)) == pytest.approx((2 / 3) / 0.2 / math.sqrt(5))


def test_what_only_one_job_knows_says_nothing_and_logme_belongs_to_its_network() -> None:
    known = a_meta(scores={"logme": 0.9}, distance=0.2)
    assert distance(known, a_meta()) == 0.0
    assert distance(known, a_meta(scores={"logme": 0.3})) == pytest.approx(2 / math.sqrt(6))
    assert distance(known, a_meta(scores={"logme": 0.3}, backbone="vgg16_bn")) == 0.0


def test_the_nearest_jobs_first_and_unlike_ones_not_at_all() -> None:
    jobs = [a_job("far", n_train=10**9, per_class_min=10**7), a_job("b", n_train=2000), a_job("a", n_train=500),
            a_job("same")]  # fmt: skip
    assert [job.id for job, _ in nearest(a_meta(), jobs)] == ["same", "a", "b"]
    many = [a_job(f"job_{n:02d}", n_train=1000 + n) for n in range(30)]
    assert [job.id for job, _ in nearest(a_meta(), many)] == [f"job_{n:02d}" for n in range(warm.NEAREST)]


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_worth_is_the_share_of_the_best_gain_over_the_best_anchor(direction: str, sign: int) -> None:
    values = [(0.5, "linear_probe"), (0.6, "l2_sp"), (0.55, None), (0.7, None), (0.8, None)]
    trials = [a_trial(n, sign * v, anchor=anchor) for n, (v, anchor) in enumerate(values)]
    assert worth(trials, direction) == pytest.approx([0, 0, 0, 0.5, 1.0])


def test_without_anchors_the_median_stands_for_them_and_without_a_gain_nothing_is_worth_trying() -> None:
    assert worth([a_trial(n, v) for n, v in enumerate([0.1, 0.3, 0.5])], "maximize") == pytest.approx([0, 0, 1.0])
    anchors = [a_trial(0, 0.9, anchor="l2_sp"), a_trial(1, 0.8)]
    assert worth(anchors, "maximize") == [0.0, 0.0]


def test_closeness_by_hand() -> None:
    one: Values = {"x": 0.2, "lr": 1e-4, "regularizer": "l2"}
    other: Values = {"x": 0.5, "lr": 1e-2, "regularizer": "l2_sp", "regularizer.l2_sp.alpha": 0.5}
    mean_square = (0.3**2 + 0.5**2 + 1 + 1) / 4  # a step of x, half the axis of lr, another part, a value of its own
    found = closeness(SPACE, [one, other], [other])
    assert found == pytest.approx(np.array([[math.exp(-mean_square / (2 * warm.WIDTH**2))], [1.0]]))
    assert closeness(SPACE, [one], []).shape == (1, 0)


def test_a_recipe_is_worth_what_the_nearest_trial_was_less_the_further_away_it_is() -> None:
    tried: list[Values | None] = [{"x": x, "lr": 0.01, "regularizer": "l2"} for x in (0.0, 1.0)]
    tried.append(None)  # a recipe of a part that the present space does not have
    recipe: Values = {"x": 0.3, "lr": 0.01, "regularizer": "l2"}
    near = math.exp(-(0.3**2 / 3) / (2 * warm.WIDTH**2))
    assert estimates(SPACE, [recipe], tried, [0.8, 1.0, 1.0]) == pytest.approx([0.8 * near])
    assert estimates(SPACE, [recipe], [None], [1.0]) == pytest.approx([0.0])


@pytest.mark.parametrize("seed", range(20))
def test_a_greedy_cover_is_near_the_best_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, weights = rng.random((9, 4)) ** 3, rng.dirichlet(np.ones(4))
    order = list(warm._rounds(weights, table, np.eye(9)))
    for n in (1, 2, 3):
        best = max(cover(weights, table, chosen) for chosen in combinations(range(9), n))
        # As many as were taken before the first round was over; the next round starts from nothing.
        reached = cover(weights, table, order[:n])
        assert reached >= (1 - 1 / math.e) * best - warm.LEAST
        if n == 1:
            assert reached == pytest.approx(best)
    assert len(order) == len(set(order))


def test_the_first_recipe_serves_all_jobs_the_next_those_it_leaves_out() -> None:
    """A compromise that is good everywhere beats the best of one job; then what is best where it is not."""
    table = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.7, 0.7, 0.7]])
    order = list(warm._rounds(np.full(3, 1 / 3), table, np.eye(3)))
    assert order[0] == 2
    assert cover(np.full(3, 1 / 3), table, [2, 0]) == pytest.approx(0.8)


def test_the_best_of_a_job_alone_is_tried_first_then_good_ones_unlike_it() -> None:
    trials = [
        a_trial(0, 0.5, anchor="l2_sp"), a_trial(1, 0.9, x=0.1), a_trial(2, 0.89, x=0.11),
        a_trial(3, 0.8, regularizer="l2_sp", x=0.9), a_trial(4, 0.4, x=0.9),
    ]  # fmt: skip
    near = weighed([(a_job("one"), 0.0)], {"one": trials})
    assert ask(near) == [1, 3], "2 is all but the same as 1, 4 is worse than the anchor"
    assert ask(near, 1) == [1]
    assert ask(near, 5, wanted=lambda values: values["regularizer"] != "l2_sp") == [1]
    assert ask(near, 1, wanted=lambda values: values["x"] != 0.1) == [2], "what is not wanted makes room"


def test_recipes_are_brought_into_the_present_space() -> None:
    narrow = SPACE.changed({"lr": {"low": 1e-3, "high": 1e-2}, "regularizer": "l2"})
    near = weighed([(a_job("one"), 0.0)], {"one": [a_trial(0, 0.5, anchor="l2"), a_trial(1, 0.9, x=0.2, lr=0.5)]})
    (found,) = portfolio(narrow, near, 3, source_of=lambda _: "src_1")
    assert found.values == {"source": "src_1", "x": 0.2, "lr": 1e-2, "regularizer": "l2"}


def test_a_recipe_that_the_present_space_makes_an_anchor_of_is_worth_what_that_was() -> None:
    narrow = SPACE.changed({"lr": {"low": 1e-3, "high": 1e-2}})
    near = weighed([(a_job("one"), 0.0)], {"one": [a_trial(0, 0.5, anchor="l2"), a_trial(1, 0.9, lr=0.5)]})
    assert portfolio(narrow, near, 3, source_of=lambda _: "src_1") == []


def test_jobs_without_trials_or_gains_propose_nothing() -> None:
    flat = [a_trial(0, 0.9, anchor="l2"), a_trial(1, 0.5)]
    assert ask(weighed([(a_job("a"), 0.0), (a_job("b"), 0.1)], {"a": flat})) == []


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"trials": 20}, 5), ({"trials": 40}, 8), ({"trials": 1000}, 8), ({"trials": 12}, 3), ({"trials": 8}, 2),
        ({"trials": 5}, 1), ({"trials": 4}, 0), ({"trials": 3}, 0), ({"wall_s": 200.0}, 5),
        ({"trials": 100, "device_s": 80.0}, 2),
    ],
)  # fmt: skip
def test_a_quarter_of_the_trials_and_never_more_than_half_of_what_is_searched(
    budget: dict[str, Any], expected: int
) -> None:
    assert room(Budget.model_validate(budget), 3, 10.0) == expected


@pytest.mark.parametrize("trials", range(1, 60))
@pytest.mark.parametrize("n_fixed", [0, 1, 3, 4])
def test_the_sampler_keeps_half_of_the_searched_trials(trials: int, n_fixed: int) -> None:
    n = room(Budget(trials=trials), n_fixed, 1.0)
    assert n <= max(0, trials - n_fixed) / 2
    assert n <= max(1, trials / 4)
