"""Every pruner: what holds for all of them, and its rule on numbers worked out by hand."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from domain.space import Choice, Dimension, FloatRange, Space
from domain.states import TrialState
from search.pruners.extrapolation import chance_below
from search.pruners.hyperband import BRACKETS, rungs_of
from search.registry import load, names
from search.study import Past, Search
from search.tracks import Track

SPACE = Space(
    dimensions=(
        Dimension(path="optimizer.lr_head", range=FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2)),
        Dimension(path="schedule", range=Choice(options=("freeze", "gradual"), default="freeze")),
    )
)
VALUES = SPACE.defaults()
Curve = Iterable[tuple[float, float]]


def search(pruner: str, *, direction: Any = "minimize", n_folds: int = 1, past: Iterable[Past] = ()) -> Search:
    found = Search(SPACE, direction=direction, sampler="random", pruner=pruner, seed=3, n_folds=n_folds)
    found.learn(past)
    return found


def complete(number: int, curve: Curve, value: float | None = None) -> Past:
    points = tuple(curve)
    return Past(number, TrialState.COMPLETE, VALUES, points[-1][1] if value is None else value, points)


def running(number: int) -> Past:
    return Past(number, TrialState.RUNNING, VALUES)


def level(value: float, n: int = 10) -> list[tuple[float, float]]:
    """A curve that stays where it is."""
    return [((k + 1) / n, value) for k in range(n)]


def falling(floor: float, *, until: float = 1.0, n: int = 20) -> list[tuple[float, float]]:
    """floor + 0.5 exp(-3 t), a little rough."""
    shares = [(k + 1) / n for k in range(n) if (k + 1) / n <= until + 1e-9]
    return [(s, floor + 0.5 * math.exp(-3 * s) + 0.004 * math.sin(17 * s)) for s in shares]


def turned(past: Past) -> Past:
    """The same trial of an objective where more is better."""
    value = None if past.value is None else 1 - past.value
    return Past(past.number, past.state, past.values, value, tuple((s, 1 - v) for s, v in past.curve))


def random_study(seed: int) -> tuple[list[Past], list[tuple[int, list[tuple[float, float]]]]]:
    rng = np.random.default_rng(seed)
    past = [complete(n, falling(float(rng.uniform(0.1, 0.5)))) for n in range(10)]
    tried = [(20 + n, falling(float(rng.uniform(0.1, 0.9)), until=float(rng.uniform(0.1, 0.9)))) for n in range(12)]
    return past, tried


# --- all of them


@pytest.mark.parametrize("pruner", names("pruners"))
@pytest.mark.parametrize("n_folds", [1, 3])
def test_the_same_history_decides_alike_in_another_process(pruner: str, n_folds: int) -> None:
    """Whatever was asked before, in whatever order the rows were read."""
    past, tried = random_study(1)
    rows = [*past, *(running(number) for number, _ in tried)]
    one = search(pruner, n_folds=n_folds, past=rows)
    for number, curve in tried:
        one.should_prune(number, curve)
    told = [Past(n, TrialState.RUNNING, VALUES, curve=tuple(c)) for n, c in tried]  # one has heard it over its pipe
    other = search(pruner, n_folds=n_folds, past=reversed([*past, *told]))
    decided = {number: one.should_prune(number, curve) for number, curve in tried}
    assert decided == {number: other.should_prune(number, ()) for number, _ in reversed(tried)}


@pytest.mark.parametrize("pruner", names("pruners"))
def test_more_is_better_is_less_is_better_turned_around(pruner: str) -> None:
    past, tried = random_study(2)
    rows = [*past, *(running(number) for number, _ in tried)]
    less = search(pruner, direction="minimize", past=rows)
    more = search(pruner, direction="maximize", past=[turned(p) for p in rows])
    for number, curve in tried:
        assert less.should_prune(number, curve) == more.should_prune(number, [(s, 1 - v) for s, v in curve])


@pytest.mark.parametrize("pruner", names("pruners"))
@pytest.mark.parametrize("n_folds", [1, 4])
def test_the_best_curve_of_all_is_never_stopped_nor_is_anything_outside_the_space(pruner: str, n_folds: int) -> None:
    past, _ = random_study(3)
    best = falling(0.0, until=0.9)
    study = search(pruner, n_folds=n_folds, past=[*past, running(20)])
    for n in range(1, len(best) + 1):
        assert not study.should_prune(20, best[:n])
    study.learn([Past(21, TrialState.RUNNING, {"schedule": "linear_probe"})])
    assert not study.should_prune(21, level(9.0))
    assert not study.should_prune(99, level(9.0)), "nobody knows this trial"


@pytest.mark.parametrize("pruner", sorted(set(names("pruners")) - {"none", "wilcoxon"}))
def test_a_hopeless_trial_is_stopped_before_half_of_its_budget(pruner: str) -> None:
    past, _ = random_study(4)
    study = search(pruner, past=[*past, running(20)])
    assert study.should_prune(20, level(2.0, 40)[:19])


@pytest.mark.parametrize("pruner", names("pruners"))
def test_values_that_are_no_numbers_count_for_nothing(pruner: str) -> None:
    past, _ = random_study(5)
    study = search(pruner, past=[*past, running(20)])
    assert not study.should_prune(20, [(0.1, math.nan), (0.5, math.inf)])


def test_a_trial_of_another_fidelity_is_compared_with_nobody() -> None:
    cheap = [Past(n, TrialState.PRUNED, VALUES, 0.0, ((1 / 3, 0.0),), comparable=False) for n in range(9)]
    study = search("halving", past=[*cheap, running(20), running(21)])
    assert not study.should_prune(20, level(5.0)[:5])


# --- one by one


def test_median_looks_at_the_best_so_far_and_waits_for_four_trials() -> None:
    four = [complete(n, level(float(n))) for n in range(4)]  # their median is 1.5
    study = search("median", past=[*four, *(running(n) for n in (7, 8, 9))])
    assert study.should_prune(8, [(0.5, 1.6), (0.6, 9.0)])
    assert not study.should_prune(9, [(0.3, 1.4), (0.6, 9.0)]), "it was better once"
    assert not study.should_prune(7, [(0.1, 1.6)]), "a fifth of the budget is for warming up"
    few = search("median", past=[*four[:3], running(8)])
    assert not few.should_prune(8, level(9.0))


def test_halving_rests_at_a_ninth_and_at_a_third() -> None:
    nine = [complete(n, level(float(n), 60)) for n in range(9)]
    study = search("halving", past=[*nine, *(running(n) for n in range(20, 26))])
    assert study.rests_at(20, level(5.5, 60)[:6]) is None, "a tenth is not yet a ninth"
    assert study.rests_at(21, level(5.5, 60)[:7]) == pytest.approx(7 / 60), "the first step past 1/9"
    # Ten have been there with it (and 21): 3 of 11 may pass.
    assert study.rests_at(22, level(2.5, 60)[:10]) == pytest.approx(7 / 60)
    assert study.rests_at(23, level(1.5, 60)[:10]) is None
    assert study.rests_at(23, level(5.5, 60)[:20]) == pytest.approx(20 / 60)


def test_a_trial_is_asked_once_at_each_rung() -> None:
    """What it has passed it has passed, whoever comes there later."""
    study = search("halving", past=[*(complete(n, level(5.0 + n, 60)) for n in range(3)), running(20)])
    assert not study.should_prune(20, level(4.0, 60)[:10])
    study.learn(complete(n, level(0.1 * n, 60)) for n in range(3, 12))
    assert study.should_prune(20, level(4.0, 60)[:12])
    assert not study.should_prune(20, level(4.0, 60)[:12], asked=10 / 60)
    assert study.rests_at(20, level(4.0, 60)[:20], asked=12 / 60) == pytest.approx(20 / 60)


def test_nobody_passes_the_first_rung_before_three_can_be_compared() -> None:
    ninth = 7 / 60
    study = search("halving", past=[running(n) for n in range(1, 4)])
    assert study.rests_at(1, level(5.0, 60)[:7]) == pytest.approx(ninth)
    assert study.rests_at(2, level(4.0, 60)[:7]) == pytest.approx(ninth)
    assert study.rests_at(3, level(3.0, 60)[:7]) is None
    two = [
        Past(n, TrialState.PAUSED, VALUES, v, tuple(level(v, 60)[:7]), rung=ninth) for n, v in ((1, 5.0), (2, 4.0))
    ]  # fmt: skip
    assert search("halving", past=two).promotable() == []
    assert search("halving", past=two).promotable(last=True) == [2], "so a search completes a trial, however short"


def test_the_first_at_a_later_rung_goes_on_and_the_second_only_if_it_is_better() -> None:
    """floor(n / 3) of n go on, but one always."""
    study = search("halving", past=[complete(0, level(1.0)), *(running(n) for n in range(1, 4))])
    assert study.rests_at(1, level(5.0)[:5]) == pytest.approx(20 / 60)
    assert study.rests_at(2, level(1.1)[:5]) == pytest.approx(20 / 60), "one of three"
    assert study.rests_at(3, level(0.9)[:5]) is None
    assert search("halving", past=[running(1)]).rests_at(1, level(5.0)[:5]) is None


def test_a_trial_at_a_rung_is_promoted_once_enough_others_have_come() -> None:
    """Losses 1, 2 and 3 reach the rung: floor(3 / 3) = 1 goes on. The second may once there are six, unless better ones
    came."""
    curve = level(0.0, 60)[:8]

    def resting(number: int, value: float) -> Past:
        points = tuple((s, value) for s, _ in curve)
        return Past(number, TrialState.PAUSED, VALUES, value, points, rung=7 / 60)

    rows = [complete(0, level(1.0, 60)), resting(1, 2.0), resting(2, 3.0)]
    assert search("halving", past=rows).promotable() == []
    rows += [resting(n, 3.0 + n) for n in (3, 4)]
    assert search("halving", past=rows).promotable() == []
    assert search("halving", past=[*rows, resting(5, 9.0)]).promotable() == [1]
    assert search("halving", past=[*rows, resting(5, 1.5)]).promotable() == [5]
    promoted = Past(1, TrialState.RUNNING, VALUES, None, tuple((s, 2.0) for s, _ in curve), passed=7 / 60)
    study = search("halving", past=[*rows[:1], *rows[2:], resting(5, 1.5), promoted])
    assert study.rests_at(1, ()) is None, "it has passed that rung, whoever came since"


@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
def test_whoever_is_best_at_its_rung_never_waits(pruner: str) -> None:
    """So a search always completes a trial."""
    rng = np.random.default_rng(0)
    for n in range(3, 30):
        losses = rng.uniform(size=n)
        rows = [
            Past(k, TrialState.PAUSED, VALUES, v, tuple(level(float(v), 60)[:7]), rung=7 / 60)
            for k, v in enumerate(losses)
            if 7 in rungs_of(k) or pruner == "halving"
        ]
        best = min(rows, key=lambda past: past.value or 0.0, default=None)
        assert best is None or best.number in search(pruner, past=rows).promotable(last=len(rows) < 3)


def test_hyperband_spreads_the_trials_over_its_brackets_as_published() -> None:
    """9, 5 and 3 of 17 with eta = 3 and s_max = 2; ten trials in a row already meet all three."""
    rungs = [rungs_of(number) for number in range(1700)]
    assert [rungs.count(BRACKETS[s]) for s in (2, 1, 0)] == pytest.approx([900, 500, 300], abs=3)
    assert {len(r) for r in BRACKETS.values()} == {0, 1, 2}
    for begin in range(0, 1000, 37):
        assert set(rungs[begin : begin + 10]) == set(BRACKETS.values())


def test_brackets_are_compared_among_themselves() -> None:
    bold = [n for n in range(60) if rungs_of(n) == BRACKETS[2]]
    later = [n for n in range(60) if rungs_of(n) == BRACKETS[1]]
    past = [complete(n, level(0.1, 60)) for n in later[:9]]
    study = search("hyperband", past=[*past, running(bold[0])])
    assert study.rests_at(bold[0], level(5.0, 60)[:30]) is None, "nobody of its bracket was there"
    study.learn(complete(n, level(0.1, 60)) for n in bold[1:9])
    assert study.rests_at(bold[0], level(5.0, 60)[:30]) == pytest.approx(20 / 60)
    patient = next(n for n in range(60) if rungs_of(n) == ())
    study.learn([running(patient)])
    assert not study.should_prune(patient, level(9.0))


def test_patience_counts_from_the_best_of_the_fit_at_hand() -> None:
    study = search("patience", past=[complete(0, level(0.2)), *(running(n) for n in range(1, 5))])
    assert not study.should_prune(1, [(0.1, 0.9), (0.2, 0.5), (0.3, 0.6), (0.5, 0.6)])
    assert study.should_prune(1, [(0.6, 0.6)]), "0.6 - 0.2 is the patience"
    assert not study.should_prune(2, [(0.1, 0.15), (0.9, 0.6)]), "it has been better than the best"
    folds = search("patience", n_folds=3, past=[complete(0, level(0.2)), running(1)])
    # Fold 1 lasts from 1/4 to 2/4: what fold 0 ended with is another story.
    assert not folds.should_prune(1, [(0.2, 0.3), (0.25, 0.3), (0.3, 0.9), (0.35, 0.8)])
    assert folds.should_prune(1, [(0.2, 0.3), (0.25, 0.3), (0.3, 0.8), (0.35, 0.9), (0.4, 0.9)])


def test_wilcoxon_pairs_the_folds_with_those_of_the_best_trial() -> None:
    """One-sided signed ranks: three folds all worse have P = 1/8; 3 + 2 - 1 with one better has P = 2/8."""
    ends = [0.2, 0.4, 0.6, 0.8]  # four folds and a closing fit
    best = complete(0, zip(ends, [0.30, 0.50, 0.20, 0.40], strict=True), value=0.35)
    other = complete(1, zip(ends, [0.90, 0.90, 0.90, 0.90], strict=True), value=0.9)
    study = search("wilcoxon", n_folds=4, past=[best, other, *(running(n) for n in range(2, 8))])
    assert not study.should_prune(2, [(0.2, 0.31), (0.4, 0.51)]), "two folds say nothing"
    assert study.should_prune(3, [(0.2, 0.31), (0.4, 0.52), (0.6, 0.23)])
    assert not study.should_prune(4, [(0.2, 0.29), (0.4, 0.52), (0.6, 0.23)])
    assert not study.should_prune(5, [(0.1, 0.9), (0.3, 0.9), (0.5, 0.9)]), "only ends of folds count"
    assert not study.should_prune(6, [(0.2, 0.30), (0.4, 0.50), (0.6, 0.20)]), "the same is not worse"
    alone = search("wilcoxon", past=[complete(0, level(0.1)), running(1)])
    assert not alone.should_prune(1, level(0.9))


def test_extrapolation_knows_where_a_curve_of_its_families_ends() -> None:
    """y = 0.2 + 0.1 t^-0.5 ends at 0.3 and y = 0.2 + 0.5 e^-3t at 0.2249, seen up to 40 %."""
    parts = np.arange(1, 9) / 20
    for losses, end in ((0.2 + 0.1 * parts**-0.5, 0.3), (0.2 + 0.5 * np.exp(-3 * parts), 0.2 + 0.5 * math.exp(-3))):
        assert chance_below(end - 0.02, parts, losses) < 0.05
        assert chance_below(end + 0.02, parts, losses) > 0.95


def test_extrapolation_keeps_its_promise_on_noisy_curves() -> None:
    """Of curves that do end below the target, at most a few per cent are given less than 5 %."""
    rng = np.random.default_rng(7)
    parts = np.arange(1, 11) / 20
    wrong = 0
    for _ in range(400):
        floor, height, rate = rng.uniform(0.1, 0.5), rng.uniform(0.1, 1.0), rng.uniform(1, 8)
        noise = rng.normal(0, 0.01, len(parts))
        end = floor + height * math.exp(-rate)
        wrong += chance_below(end + 0.005, parts, floor + height * np.exp(-rate * parts) + noise) < 0.05
    assert wrong <= 400 * 0.06


def test_extrapolation_is_less_certain_of_a_rougher_curve() -> None:
    rng = np.random.default_rng(1)
    parts, noise = np.arange(1, 9) / 20, rng.normal(size=8)
    smooth = 0.3 + 0.4 * np.exp(-4 * parts)
    chances = [chance_below(0.25, parts, smooth + scale * noise) for scale in (0.001, 0.01, 0.05)]
    assert chances[0] < chances[1] < chances[2]


def test_extrapolation_wants_a_quarter_of_the_fit_and_five_points() -> None:
    study = search("extrapolation", past=[complete(0, level(0.05)), *(running(n) for n in range(1, 4))])
    assert not study.should_prune(1, level(0.9, 60)[:10]), "a sixth"
    assert not study.should_prune(3, level(0.9, 8)[:4]), "four points"
    assert study.should_prune(2, level(0.9, 20)[:8])


def test_a_track_is_built_without_gaps_from_what_came_before() -> None:
    """A resumed trial tells its curve from its resume point on; what it told before still counts."""
    study = search("halving", past=[complete(n, level(float(n), 60)) for n in range(9)])
    study.learn([Past(20, TrialState.RUNNING, VALUES, curve=tuple(level(5.0, 60)[:6]))])
    assert study.rests_at(20, [(7 / 60, 5.0), (8 / 60, 5.0)]) == pytest.approx(7 / 60)
    assert load("pruners", "none").build().stops(Track(1, TrialState.RUNNING), []) is False
