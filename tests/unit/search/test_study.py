import math

import pytest

from domain.rungs import GRID
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Space, Value
from domain.states import TrialState
from search.curves import on_grid
from search.registry import names
from search.study import Past, Search

SPACE = Space(
    dimensions=(
        Dimension(path="optimizer.lr_head", range=FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2)),
        Dimension(path="regularizer", range=Choice(options=("l2", "l2_sp"), default="l2_sp")),
        Dimension(
            path="regularizer.l2_sp.alpha",
            range=FloatRange(low=1e-4, high=1.0, log=True, default=0.1),
            when=(Condition(path="regularizer", values=("l2_sp",)),),
        ),
        Dimension(path="schedule.freeze.depth", range=IntRange(low=0, high=4, default=0)),
    ),
    fixed={"data.flip": False},
)


def new_search(sampler: str = "tpe", pruner: str = "none", direction: str = "minimize", seed: int = 7) -> Search:
    return Search(SPACE, direction=direction, sampler=sampler, pruner=pruner, seed=seed)


def loss(values: dict[str, Value]) -> float:
    """Best at lr 1e-2, l2_sp with alpha 0.1, depth 2."""
    lr, depth = float(values["optimizer.lr_head"]), int(values["schedule.freeze.depth"])
    alpha = float(values.get("regularizer.l2_sp.alpha", 1e-4))
    return math.log10(lr / 1e-2) ** 2 + math.log10(alpha / 0.1) ** 2 + (depth - 2) ** 2 / 4


def run(search: Search, n: int) -> list[Past]:
    history = []
    for number in range(n):
        values = search.ask(number).values
        history.append(Past(number, TrialState.COMPLETE, values, loss(values)))
        search.learn(history[-1:])
    return history


@pytest.mark.parametrize("sampler", names("samplers"))
def test_every_sampler_stays_inside_the_space(sampler: str) -> None:
    for past in run(new_search(sampler), 20):
        assert past.values["data.flip"] is False
        assert ("regularizer.l2_sp.alpha" in past.values) == (past.values["regularizer"] == "l2_sp")
        for dimension in SPACE.dimensions:
            if dimension.path in past.values:
                assert dimension.range.holds(past.values[dimension.path])


@pytest.mark.parametrize("sampler", names("samplers"))
def test_a_search_rebuilt_from_history_proposes_the_same(sampler: str) -> None:
    first = new_search(sampler)
    history = run(first, 15)
    rebuilt = new_search(sampler)
    rebuilt.learn(history)
    assert rebuilt.ask(15).values == first.ask(15).values


def test_another_seed_proposes_something_else() -> None:
    assert new_search(seed=1).ask(0).values != new_search(seed=2).ask(0).values


def test_tpe_beats_random_on_most_seeds() -> None:
    def best(sampler: str, seed: int) -> float:
        return min(p.value for p in run(new_search(sampler, seed=seed), 40) if p.value is not None)

    wins = sum(best("tpe", seed) < best("random", seed) for seed in range(10))
    assert wins >= 7


def test_running_and_failed_trials_are_accepted_and_cancelled_ones_teach_nothing() -> None:
    search = new_search()
    values = search.ask(0).values
    search.learn([
        Past(0, TrialState.RUNNING, values, curve=((0.5, 1.0),)),
        Past(1, TrialState.FAILED, values),
        Past(2, TrialState.CANCELLED, values),
        Past(3, TrialState.COMPLETE, values, float("nan")),
    ])  # fmt: skip
    search.learn([Past(0, TrialState.COMPLETE, values, 1.0)])
    assert search.finished == {0, 1, 2, 3}
    assert search.ask(4).values


def test_a_forgotten_proposal_does_not_block_its_number() -> None:
    search = new_search()
    search.ask(0)
    search.forget(0)
    other = dict(new_search(seed=99).ask(0).values)
    search.learn([Past(0, TrialState.COMPLETE, other, 0.5)])
    assert 0 in search.finished


def test_an_anchor_outside_the_space_is_not_learned() -> None:
    search = new_search(pruner="median")
    search.learn([Past(0, TrialState.COMPLETE, {"schedule": "linear_probe"}, 0.1)])
    assert not search.should_prune(0, [(1.0, 100.0)])


def test_median_stops_the_worse_half_and_only_that() -> None:
    search = new_search(pruner="median")
    values = SPACE.defaults()
    search.learn(
        Past(n, TrialState.COMPLETE, values, float(n), tuple((s / 10, float(n)) for s in range(1, 11)))
        for n in range(5)
    )
    search.learn([Past(9, TrialState.RUNNING, values), Past(10, TrialState.RUNNING, values)])
    assert search.should_prune(9, [(0.1, 3.5), (0.5, 3.5)])  # median of 0..4 is 2
    assert not search.should_prune(10, [(0.1, 1.5), (0.5, 1.5)])


@pytest.mark.parametrize(("direction", "worse", "better"), [("minimize", 8.5, 0.5), ("maximize", 0.5, 8.5)])
def test_halving_lets_the_best_third_pass_each_rung(direction: str, worse: float, better: float) -> None:
    search = new_search(pruner="halving", direction=direction)
    values = SPACE.defaults()
    search.learn(
        Past(n, TrialState.COMPLETE, values, float(n), tuple((s / 10, float(n)) for s in range(1, 11)))
        for n in range(9)
    )
    search.learn([Past(20, TrialState.RUNNING, values), Past(21, TrialState.RUNNING, values)])
    assert not search.should_prune(20, [(0.05, worse)]), "no rung reached yet"
    assert search.should_prune(20, [(0.1, worse), (0.2, worse)])
    assert not search.should_prune(21, [(0.1, better), (0.2, better)])


def test_a_curve_on_the_grid_holds_the_latest_value_at_each_share() -> None:
    grid = on_grid([(0.5, 2.0), (0.25, 1.0)])
    assert min(grid) == GRID // 4
    assert max(grid) == GRID // 2
    assert grid[GRID // 4] == grid[GRID // 2 - 1] == 1.0
    assert grid[GRID // 2] == 2.0
    assert on_grid([]) == on_grid([(0.5, float("nan"))]) == {}
