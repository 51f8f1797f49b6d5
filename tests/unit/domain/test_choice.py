"""Which trial wins under limits, and which ones nobody beats."""

from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError

from domain.choice import Measured, choose, compared, front, measured, rank, to_measure, why_chosen
from domain.job import Limit, Objective

ACCURACY, LATENCY, SIZE = (Objective(name=n) for n in ("accuracy", "latency_ms", "size_bytes"))
QUICK = Limit(objective="latency_ms", at_most=10)


def trial(number: int, **values: float) -> Measured:
    return Measured(f"tr_{number}", number, values)


def test_without_limits_the_best_by_the_first_objective_wins() -> None:
    trials = [trial(0, accuracy=0.8), trial(1, accuracy=0.9), trial(2, accuracy=0.9)]
    found = choose(trials, [ACCURACY])
    assert (found.number, why_chosen(found, trials, [ACCURACY], ())) == (1, "")
    assert [t.number for t in rank(trials, [ACCURACY])] == [1, 2, 0]
    losses = [trial(0, log_loss=0.5), trial(1, log_loss=0.2)]
    assert choose(losses, [Objective(name="log_loss")]).number == 1


def test_a_better_trial_beyond_a_limit_loses_and_the_result_says_so() -> None:
    trials = [
        trial(0, accuracy=0.7, latency_ms=5),
        trial(1, accuracy=0.8, latency_ms=10),
        trial(2, accuracy=0.95, latency_ms=30),
        trial(3, accuracy=0.99),  # never measured
    ]
    found = choose(trials, [ACCURACY, LATENCY], [QUICK])
    assert found.number == 1
    assert why_chosen(found, trials, [ACCURACY, LATENCY], [QUICK]) == (
        "2 of 4 trials keep the limits (latency_ms at most 10); trial 1 was chosen of them. Without limits it would "
        "have been trial 3, with accuracy 0.99 instead of 0.8."
    )


def test_the_sentence_on_limits_is_about_the_trial_that_was_taken() -> None:
    """Whoever chooses may go by more than one value of each: by means over seeds."""
    trials = [trial(0, accuracy=0.7, latency_ms=5), trial(1, accuracy=0.8, latency_ms=10), trial(2, latency_ms=30)]
    assert why_chosen(trials[0], trials, [ACCURACY], [QUICK]) == (
        "2 of 3 trials keep the limits (latency_ms at most 10); trial 0 was chosen of them."
    ), "no limit kept trial 1 from winning"
    assert why_chosen(trials[2], trials, [ACCURACY], [QUICK]) == (
        "2 of 3 trials keep the limits (latency_ms at most 10), and trial 2, which was chosen, does not: its "
        "latency_ms is 30. Do not take it for what was asked."
    )


def test_if_none_keeps_the_limits_the_nearest_wins_and_the_result_says_so() -> None:
    limits = [QUICK, Limit(objective="macro_f1", at_least=0.8)]
    trials = [
        trial(0, accuracy=0.9, latency_ms=12, macro_f1=0.6),  # 0.2 + 0.25 beyond
        trial(1, accuracy=0.5, latency_ms=14, macro_f1=0.9),  # 0.4
        trial(2, accuracy=0.99, latency_ms=30, macro_f1=0.9),  # 2.0
    ]
    found = choose(trials, [ACCURACY], limits)
    told = why_chosen(found, trials, [ACCURACY], limits)
    assert found.number == 1
    assert told.startswith("No trial keeps the limits (latency_ms at most 10 and macro_f1 at least 0.8): trial 1")
    assert "its latency_ms is 14" in told
    assert [t.number for t in rank(trials, [ACCURACY], limits)] == [1, 0, 2]


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to choose"):
        choose([trial(0, latency_ms=3.0)], [ACCURACY])


@pytest.mark.parametrize("objectives", [(ACCURACY,), (ACCURACY, LATENCY), (ACCURACY, LATENCY, SIZE)])
def test_the_front_is_what_comparing_every_pair_leaves(objectives: tuple[Objective, ...]) -> None:
    rng = np.random.default_rng(len(objectives))
    for _ in range(30):
        # Few different numbers, so that many trials are level in one objective or in all of them.
        trials = [trial(n, **{o.name: float(rng.integers(1, 5)) for o in objectives}) for n in range(15)]

        def beats(a: Measured, b: Measured) -> bool:
            gains = [(1 if o.direction == "maximize" else -1) * (a.values[o.name] - b.values[o.name])
                     for o in objectives]  # fmt: skip
            return min(gains) >= 0 and (max(gains) > 0 or a.number < b.number)

        left = {t.number for t in trials if not any(beats(o, t) for o, t in product(trials, [t]) if o is not t)}
        found = front(trials, objectives)
        assert {t.number for t in found} == left
        assert found[0] == rank(trials, objectives)[0]


def test_the_winner_is_on_the_front_of_all_that_was_asked_for() -> None:
    """Also where a limit names an objective that is none of the list, and where no trial keeps it."""
    rng = np.random.default_rng(4)
    for bound in (1, 2, 3, 0.5):
        limits = [Limit(objective="size_bytes", at_most=bound)]
        names = ("accuracy", "latency_ms", "size_bytes")
        trials = [trial(n, **{name: float(rng.integers(1, 6)) for name in names}) for n in range(12)]
        asked = compared([ACCURACY, LATENCY], limits)
        assert asked == (ACCURACY, LATENCY, SIZE)
        assert choose(trials, [ACCURACY, LATENCY], limits) in front(trials, asked)


def test_a_trial_that_lacks_a_number_is_on_no_front() -> None:
    whole = trial(1, accuracy=0.5, latency_ms=3)
    assert front([trial(0, accuracy=0.9), whole], [ACCURACY, LATENCY]) == [whole]


def test_what_is_measured_is_what_an_objective_or_a_limit_names() -> None:
    limits = [Limit(objective="size_bytes", at_most=1e6), Limit(objective="macro_f1", at_least=0.5), QUICK]
    assert to_measure([ACCURACY, LATENCY], limits) == ("latency_ms", "size_bytes")
    assert to_measure([ACCURACY], []) == ()
    assert measured("tr_1", 1, 0.9, {"accuracy": 0.1, "latency_ms": 3.0}, [ACCURACY]).values == {
        "accuracy": 0.9, "latency_ms": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"objective": "latency_ms"}, "give at_most or at_least"),
        ({"objective": "latency_ms", "at_least": 3}, "of latency_ms, less is better: limit it with at_most"),
        ({"objective": "source_accuracy", "at_most": 0.3}, "of source_accuracy, more is better"),
        ({"objective": "size_bytes", "at_most": 0}, "above zero"),
        ({"objective": "size_bytes", "at_most": float("inf")}, "above zero"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(limit: dict, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Limit.model_validate(limit)
