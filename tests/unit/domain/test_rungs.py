"""Where a trial is evaluated because it is compared there."""

import pytest

from domain.rungs import GRID, RUNGS, steps_at_rungs


def test_the_first_step_that_reaches_a_rung_stands_for_it():
    assert RUNGS == (7, 20)  # 1/9 and 1/3 of 60, rounded up
    assert steps_at_rungs(160, fit=0, n_fits=1) == pytest.approx({19: 7 / 60, 54: 1 / 3})


def test_fits_follow_one_another_on_the_axis_of_shares():
    first, second = (steps_at_rungs(30, fit=fit, n_fits=4) for fit in (0, 1))
    assert first == pytest.approx({14: 7 / 15})  # 7/60 of four fits
    assert second == pytest.approx({10: 1 / 3})  # 4/3 of them
    assert steps_at_rungs(30, fit=2, n_fits=4) == {}


@pytest.mark.parametrize("n_steps", [*range(1, 100), 500, 12345])
def test_no_evaluation_stands_for_a_rung_far_from_it(n_steps: int):
    found = steps_at_rungs(n_steps, fit=0, n_fits=1)
    assert all(0 <= step / n_steps - share < 2 / GRID and 1 <= step < n_steps for step, share in found.items())
    assert len(found) == len(RUNGS) or n_steps < GRID
