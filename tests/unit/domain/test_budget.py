"""Budgets by worked numbers: when a search is over, when training has to end, and what a budget may grow to."""

import pytest

from domain.budget import Attempt, Standing, check_target, extended, last_call_s, n_in_vain, spent
from domain.errors import Invalid
from domain.job import Budget, Objective

ACCURACY, LOG_LOSS = Objective(name="accuracy"), Objective(name="log_loss")


def fixed(value: float | None) -> Attempt:
    return Attempt(searched=False, value=value)


def searched(value: float | None = None) -> Attempt:
    return Attempt(searched=True, value=value)


def why(budget: Budget, *, n: int = 0, wall_s: float = 0, device_s: float = 0, attempts: tuple[Attempt, ...] = (),
        until_s: float = 1e9, direction: str = "maximize") -> str | None:  # fmt: skip
    return spent(budget, Standing(n, wall_s, device_s, attempts), until_s=until_s, direction=direction)


def test_each_part_of_a_budget_ends_the_search_by_itself() -> None:
    budget = Budget(trials=10, wall_s=100, device_s=80, target=0.9, patience=2)
    assert why(budget, n=9, wall_s=79.9, device_s=79.9, until_s=80) is None
    assert why(budget, n=10) == "trials"
    assert why(budget, wall_s=80, until_s=80) == "time"
    assert why(budget, device_s=80) == "device_time"
    assert why(budget, attempts=(searched(0.9),)) == "target"
    assert why(budget, attempts=(searched(0.5), searched(0.4), searched(0.5))) == "patience"


@pytest.mark.parametrize(("direction", "reached", "missed"), [("maximize", 0.31, 0.29), ("minimize", 0.29, 0.31)])
def test_a_target_is_reached_from_the_side_of_its_direction(direction: str, reached: float, missed: float) -> None:
    budget = Budget(trials=10, target=0.3)
    assert why(budget, attempts=(fixed(missed),), direction=direction) is None
    assert why(budget, attempts=(fixed(missed), fixed(reached)), direction=direction) == "target"
    assert why(budget, attempts=(searched(None),), direction=direction) is None, "pruned: its value is no result"


def test_patience_counts_searched_trials_since_the_best_one_and_no_others() -> None:
    assert n_in_vain([], "maximize") == 0
    assert n_in_vain([searched(), searched()], "maximize") == 0, "there is nothing yet that they could beat"
    assert n_in_vain([fixed(0.7), fixed(0.6), fixed(0.5)], "maximize") == 0
    assert n_in_vain([fixed(0.7), searched(0.6), searched(), fixed(0.1), searched(0.7)], "maximize") == 3, "a tie"
    assert n_in_vain([fixed(0.7), searched(0.6), searched(0.8), searched(0.75)], "maximize") == 1
    assert n_in_vain([fixed(0.7), searched(0.6), searched(0.8), searched(0.75)], "minimize") == 2


@pytest.mark.parametrize(
    ("wall_s", "finish_s", "has_result", "until_s"),
    [
        (100, 20, True, 80),  # the finish is kept
        (100, 20, False, 95),  # 15 s late at most, while there is nothing to finish
        (100, 5, False, 100),  # no later than the budget's own end
        (1000, 200, False, 850),  # 5 % of it
        (10, 20, True, 0),
    ],
)
def test_training_ends_so_that_the_finish_fits(
    wall_s: float, finish_s: float, has_result: bool, until_s: float
) -> None:
    assert last_call_s(wall_s, finish_s, has_result=has_result) == pytest.approx(until_s)


@pytest.mark.parametrize(("objective", "target"), [(ACCURACY, 1.5), (ACCURACY, 0), (ACCURACY, -1), (LOG_LOSS, 0)])
def test_a_target_that_says_nothing_is_refused(objective: Objective, target: float) -> None:
    with pytest.raises(Invalid, match="bad_target"):
        check_target(Budget(trials=5, target=target), objective)
    check_target(Budget(trials=5, target=0.9), objective)


def test_budgets_grow_and_targets_move_away() -> None:
    old = Budget(trials=5, wall_s=60, target=0.8)
    assert extended(old, {"trials": 9, "target": 0.9, "wall_s": None}, ACCURACY) == Budget(
        trials=9, wall_s=60, target=0.9
    )
    for more in ({"trials": 4}, {"target": 0.7}, {"patience": 3}, {"device_s": 9.0}, {"target": 1.2}):
        with pytest.raises(Invalid):
            extended(old, more, ACCURACY)
    assert extended(old, {"target": 0.7}, LOG_LOSS).target == 0.7
    with pytest.raises(Invalid, match="can only fall"):
        extended(old, {"target": 0.9}, LOG_LOSS)
