from hypothesis import given
from hypothesis import strategies as st

from api.progress import elapsed_s, left_s, spent_share
from domain.job import Budget
from store.tables import JobRow


def job(**times: float | None) -> JobRow:
    return JobRow(**({"started_at": None, "finished_at": None, "paused_s": 0.0, "paused_at": None} | times))


def test_elapsed_leaves_pauses_out() -> None:
    assert elapsed_s(job(), 500.0) == 0
    assert elapsed_s(job(started_at=100.0), 500.0) == 400
    assert elapsed_s(job(started_at=100.0, paused_s=30.0), 500.0) == 370
    assert elapsed_s(job(started_at=100.0, paused_s=30.0, paused_at=450.0), 500.0) == 320
    assert elapsed_s(job(started_at=100.0, finished_at=200.0), 500.0) == 100


def test_share_is_the_larger_of_the_two() -> None:
    assert spent_share(Budget(trials=10), 4, 1e9) == 0.4
    assert spent_share(Budget(wall_s=100), 4, 25) == 0.25
    assert spent_share(Budget(trials=10, wall_s=100), 4, 25) == 0.4
    assert spent_share(Budget(trials=10, wall_s=100), 4, 90) == 0.9
    assert spent_share(Budget(trials=2), 5, 0) == 1
    assert spent_share(Budget(trials=10, device_s=50), 4, 25, 30) == 0.6


def test_time_left_is_the_smaller_guess() -> None:
    assert left_s(Budget(trials=10), 0, 0, None) is None
    assert left_s(Budget(trials=10), 0, 0, {"s_per_trial": 3.0}) == 30
    assert left_s(Budget(trials=10), 4, 20, None) == 30  # 5 s each, 6 to go
    assert left_s(Budget(trials=10), 4, 20, {"finish_s": 7.0}) == 37  # and the bundle
    assert left_s(Budget(device_s=100), 4, 20, None, 40) == 30  # 60 s of training, two at a time
    assert left_s(Budget(trials=10, target=0.9, patience=3), 4, 20, None) == 30  # what nobody can foretell
    assert left_s(Budget(trials=10), 1, 2, {"s_per_trial": 30.0}) == 270  # the first was a linear probe
    assert left_s(Budget(trials=10), 4, 20, {"s_per_trial": 30.0}) == 30
    assert left_s(Budget(trials=10, wall_s=45), 4, 20, None) == 25
    assert left_s(Budget(wall_s=45), 4, 60, None) == 0


@given(st.integers(1, 100), st.floats(1, 1e6), st.integers(0, 200), st.floats(0, 1e7))
def test_shares_and_times_stay_in_bounds(trials: int, wall_s: float, n_done: int, elapsed: float) -> None:
    budget = Budget(trials=trials, wall_s=wall_s)
    assert 0 <= spent_share(budget, n_done, elapsed) <= 1
    left = left_s(budget, n_done, elapsed, None)
    assert left is not None
    assert 0 <= left <= wall_s
