"""The formulas of P-SHE2 against numbers worked out by hand, and the shipped one against its source's own steps."""

import math
from itertools import product

import numpy as np
import pytest

from search.cube import Array
from search.pshe2 import ALPHA, EPSILON, SharedSwarm, Swarm, draw, perturb, step


class Quiet(np.random.Generator):
    """A generator whose uniform draws are all 0: no noise."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: float = 0.0, high: float = 1.0, size: int | None = None) -> Array:  # type: ignore[override]
        return np.zeros(size or 1)


def test_after_one_evaluation_a_particle_goes_a_quarter_of_the_way_to_the_best() -> None:
    x, g = np.array([0.8, -0.4]), np.array([0.0, 0.4])
    moved, m = step(x, np.zeros(2), p=x, g=g, t=1)
    assert moved == pytest.approx([0.6, -0.2])
    assert m == pytest.approx([-0.4, 0.4])


def test_the_best_particle_stays_where_it_is_after_its_first_evaluation() -> None:
    swarm = Swarm(np.zeros(2), n_particles=2)
    swarm.tell(0, [0.5, 0.5], [0.0, 0.0], 1.0)
    swarm.tell(1, [-0.5, 0.1], [0.0, 0.0], 2.0)
    assert swarm.ask(0, Quiet())[0] == pytest.approx([0.5, 0.5])
    assert swarm.ask(1, Quiet())[0] == pytest.approx([-0.25, 0.2])


@pytest.mark.parametrize(("t", "damping"), [(1, -0.5), (2, 0.25), (3, 0.5), (4, 0.625), (5, 0.7), (6, 0.75)])
def test_a_step_about_the_origin_is_the_linear_map_of_the_formula(t: int, damping: float) -> None:
    """With p = g = 0: [x; m] <- [[1 - 2 a^2, a c], [-2 a, c]] [x; m], whose determinant is the damping c."""
    matrix = np.array([[1 - 2 * ALPHA**2, ALPHA * damping], [-2 * ALPHA, damping]])
    assert np.linalg.det(matrix) == pytest.approx(damping)
    x, m, zero = np.array([0.3]), np.array([-0.7]), np.zeros(1)
    assert np.array(step(x, m, p=zero, g=zero, t=t)) == pytest.approx(matrix @ np.array([x, m]))


def test_noise_keeps_a_point_inside_and_draws_it_to_the_centre_by_a_tenth() -> None:
    rng = np.random.default_rng(0)
    drawn = perturb(np.full(100_000, 0.6), rng)
    assert drawn.mean() == pytest.approx(0.6 * (1 - EPSILON / 2), abs=2e-3)
    assert np.abs(perturb(rng.uniform(-1, 1, 10_000), rng)).max() <= 1


def test_half_of_the_first_places_lie_on_either_side_of_the_default() -> None:
    drawn = draw(np.full(100_000, -0.9), np.random.default_rng(0))
    assert (drawn > -0.9).mean() == pytest.approx(0.5, abs=0.01)
    assert drawn[drawn > -0.9].mean() == pytest.approx(0.05, abs=0.01), "uniform on [-0.9, 1]"
    assert -1 <= drawn.min() < drawn.max() <= 1


def test_a_failed_trial_changes_no_best_and_its_particle_is_drawn_anew() -> None:
    swarm = Swarm(np.array([0.9]), n_particles=2)
    swarm.tell(0, [0.2], [0.0], 1.0)
    swarm.tell(1, [0.8], [0.0], 2.0)
    swarm.tell(0, [0.7], [5.0], None)
    drawn, m = swarm.ask(0, Quiet())
    assert (drawn, m) == (pytest.approx([0.9]), pytest.approx([0.0])), "the rule of the first place, and at rest"
    swarm.tell(0, [0.6], [0.0], 3.0)  # its second evaluation: damping 0.25, still drawn to its best at 0.2 twice
    assert swarm.ask(0, Quiet())[0] == pytest.approx([0.6 - 2 * ALPHA**2 * 0.4])
    assert swarm.ask(1, Quiet())[0] == pytest.approx([0.8 - ALPHA**2 * 0.6]), "counted for each particle"


def test_of_equal_results_the_newer_is_the_best_and_an_unfinished_one_is_none() -> None:
    swarm = Swarm(np.zeros(1), n_particles=2)
    swarm.tell(0, [0.1], [0.0], math.inf)
    assert swarm.best == math.inf
    assert swarm.ask(0, Quiet())[0] == pytest.approx([0.1]), "nothing draws it anywhere"
    swarm.tell_other([0.4], 1.0)
    swarm.tell_other([0.8], 1.0)
    assert swarm.ask(0, Quiet())[0] == pytest.approx([0.1 + ALPHA**2 * 0.7])


def test_of_two_that_were_stopped_a_particle_keeps_to_the_better() -> None:
    """Farther is better, then the smaller loss; and any that ran to its end is better than both."""
    swarm = Swarm(np.zeros(1), n_particles=2)
    for x, stopped_at in ((0.1, (-20.0, 0.5)), (0.8, (-20.0, 0.7)), (0.6, (-7.0, 0.1))):
        swarm.tell(0, [x], [0.0], math.inf, stopped_at=stopped_at)
    assert swarm.best == math.inf
    assert swarm.ask(0, Quiet())[0] == pytest.approx([0.6 - ALPHA**2 * 0.5]), "drawn to 0.1"
    swarm.tell(0, [0.3], [0.0], 9.0)
    assert swarm.ask(0, Quiet())[0] == pytest.approx([0.3])


def as_shipped(xs: list[list[float]], f: list[list[float]]) -> list[list[list[float]]]:
    """The places after each round without noise, by the steps of the shipped program, its shared lists included."""
    n, d = len(xs), len(xs[0])
    momentums, local, overall = [[0.0] * d] * n, [[0.0] * d] * n, [[0.0] * d] * n
    ps, rps = [list(x) for x in xs], [math.inf] * n
    g, rg = list(xs[0]), math.inf
    places = []
    for t, rewards in enumerate(f, 1):
        for i in (i for i in range(n) if rewards[i] <= rps[i]):
            ps[i], rps[i] = list(xs[i]), rewards[i]
        k = rewards.index(min(rewards))
        if rewards[k] <= rg:
            g, rg = list(xs[k]), rewards[k]
        for i, j in product(range(n), range(d)):
            local[i][j] = xs[i][j] - ps[i][j]
            overall[i][j] = xs[i][j] - g[j]
        for i, j in product(range(n), range(d)):
            m = momentums[i][j]
            momentums[i][j] = m - 3 * 0.5 / t * m - 0.5 * local[i][j] - 0.5 * overall[i][j]
        for i, j in product(range(n), range(d)):
            xs[i][j] = xs[i][j] + 0.5 * momentums[i][j]
        places.append([list(x) for x in xs])
    return places


@pytest.mark.parametrize("seed", range(5))
def test_the_compatibility_mode_moves_as_the_shipped_program_did(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start, results = rng.uniform(-1, 1, (5, 4)), rng.uniform(0, 1, (10, 5)).tolist()
    swarm, xs = SharedSwarm(np.zeros(4)), list(start)
    for rewards, expected in zip(results, as_shipped(start.tolist(), results), strict=True):
        xs = swarm.tell(xs, rewards)
        assert np.array(xs) == pytest.approx(np.array(expected), abs=1e-12)


def test_the_shipped_program_moves_all_particles_alike_and_the_correct_one_does_not() -> None:
    start = np.random.default_rng(3).uniform(-1, 1, (3, 2))
    results = [1.0, 2.0, 3.0]
    shipped = np.array(SharedSwarm(np.zeros(2), n_particles=3).tell(list(start), results)) - start
    assert shipped[1:] == pytest.approx(np.array([shipped[0], shipped[0]]))
    assert np.abs(shipped).max() > 0.01
    swarm = Swarm(np.zeros(2), n_particles=3)
    for i, (x, r) in enumerate(zip(start, results, strict=True)):
        swarm.tell(i, x, np.zeros(2), r)
    moved = np.array([swarm.ask(i, Quiet())[0] for i in range(3)]) - start
    assert moved[0] == pytest.approx([0, 0])
    assert moved[1] == pytest.approx(-0.25 * (start[1] - start[0]))


def best_of_swarm(seed: int, *, d: int, n: int, rounds: int) -> float:
    rng = np.random.default_rng([seed, 1])
    optimum = rng.uniform(-1, 1, d)
    swarm, best = Swarm(np.zeros(d), n_particles=n), math.inf
    for _ in range(rounds):
        for i in range(n):
            x, m = swarm.ask(i, rng)
            r = float(((np.clip(x, -1, 1) - optimum) ** 2).sum())
            swarm.tell(i, x, m, r)
            best = min(best, r)
    return best


def test_it_beats_random_search_on_a_sphere_of_twelve_dimensions() -> None:
    def random_best(seed: int) -> float:
        optimum = np.random.default_rng([seed, 1]).uniform(-1, 1, 12)
        points = np.random.default_rng([seed, 2]).uniform(-1, 1, (150, 12))
        return float(((points - optimum) ** 2).sum(axis=1).min())

    wins = sum(best_of_swarm(seed, d=12, n=15, rounds=10) < random_best(seed) for seed in range(100))
    assert wins >= 95
