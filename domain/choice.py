"""Which trial wins, and which ones nobody beats: pure functions of what was measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from domain.job import OF_NETWORK, Limit, Objective


@dataclass(frozen=True, slots=True)
class Measured:
    """A COMPLETE trial, or a network made of several, as the choice sees it."""

    trial_id: str
    number: int
    values: Mapping[str, float]  # objective -> value


def measured(
    trial_id: str, number: int, value: float, metrics: Mapping[str, float] | None, objectives: Sequence[Objective]
) -> Measured:
    """A trial from its row: the first objective is its `value`, everything else stands among its metrics."""
    return Measured(trial_id, number, {**(metrics or {}), objectives[0].name: value})


def choose(trials: Iterable[Measured], objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> Measured:
    """Of the trials that keep every limit, the best by the first objective; if none does, the one that is least beyond.

    Equals: the earlier trial. ValueError without trials.
    """
    ranked = rank(trials, objectives, limits)
    if not ranked:
        raise ValueError("there is nothing to choose from")
    return ranked[0]


def rank(trials: Iterable[Measured], objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> list[Measured]:
    """Best first: by how far they are beyond the limits, then by the first objective, by the others, by number.

    This is feasibility first, as Deb puts it: whatever keeps the limits beats whatever does not. How far a trial is
    beyond them is the sum of |value - bound| / |bound| over the limits that it breaks, infinite where one of them was
    not measured.
    Deb, An efficient constraint handling method for genetic algorithms, 2000, §3.
    """
    first, *others = compared(objectives, limits)

    def place(trial: Measured) -> tuple[float, ...]:
        goods = [_upwards(o, trial.values.get(o.name)) for o in (first, *others)]
        return _beyond(trial, limits), *(-good for good in goods), trial.number

    return sorted((t for t in trials if first.name in t.values), key=place)


def compared(objectives: Sequence[Objective], limits: Sequence[Limit] = ()) -> tuple[Objective, ...]:
    """The objectives, and those that a limit alone names: over these the winner always stands on the front."""
    limited = (Objective(name=limit.objective) for limit in limits)
    return tuple({o.name: o for o in (*objectives, *limited)}.values())


def front(trials: Iterable[Measured], objectives: Sequence[Objective]) -> list[Measured]:
    """The trials that no other one beats: nothing is at least as good in every objective and better in one.

    By the first objective, best first. A trial that lacks a number cannot be compared and is left out; of trials with
    the very same numbers the earliest stands for all.
    """
    points = [(tuple(_upwards(o, t.values.get(o.name)) for o in objectives), t)
              for t in trials if all(o.name in t.values for o in objectives)]  # fmt: skip
    kept: list[tuple[tuple[float, ...], Measured]] = []
    # Sorted by all objectives, the best first, a trial can be beaten by one before it alone.
    for point, trial in sorted(points, key=lambda p: (tuple(-v for v in p[0]), p[1].number)):
        if not any(all(a >= b for a, b in zip(other, point, strict=True)) for other, _ in kept):
            kept.append((point, trial))
    return [trial for _, trial in kept]


def to_measure(objectives: Sequence[Objective], limits: Sequence[Limit]) -> tuple[str, ...]:
    """The facts of the network that an objective or a limit asks for, each once."""
    asked = {*(o.name for o in objectives), *(limit.objective for limit in limits)}
    return tuple(name for name in OF_NETWORK if name in asked)


def spoken(limit: Limit) -> str:
    """`latency_ms at most 20`"""
    return f"{limit.objective} {'at least' if limit.at_most is None else 'at most'} {limit.bound:g}"


def _upwards(objective: Objective, value: float | None) -> float:
    """More is better; what was not measured is worst."""
    if value is None:
        return -math.inf
    return -value if objective.direction == "minimize" else value


def _beyond(trial: Measured, limits: Sequence[Limit]) -> float:
    return sum(_over(limit, trial.values) for limit in limits)


def _over(limit: Limit, values: Mapping[str, float]) -> float:
    value = values.get(limit.objective)
    if value is None:
        return math.inf
    return 0.0 if limit.holds(value) else abs(value - limit.bound) / abs(limit.bound)


def why_chosen(
    winner: Measured, trials: Sequence[Measured], objectives: Sequence[Objective], limits: Sequence[Limit]
) -> str:
    """What the limits did to the choice of `winner` among all `trials`, in a sentence or two; empty without limits."""
    if not limits:
        return ""
    first = objectives[0]
    n_within = sum(_beyond(trial, limits) == 0 for trial in trials)
    asked = " and ".join(spoken(limit) for limit in limits)
    if _beyond(winner, limits) > 0:
        broken = ", ".join(
            f"{limit.objective} is {_number(winner.values.get(limit.objective))}"
            for limit in limits if _over(limit, winner.values) > 0
        )  # fmt: skip
        text = f"No trial keeps the limits ({asked}): trial {winner.number} is the nearest to them, but its {broken}."
        if n_within:
            text = (
                f"{n_within} of {len(trials)} trials keep the limits ({asked}), and trial {winner.number}, which was "
                f"chosen, does not: its {broken}."
            )
        return f"{text} Do not take it for what was asked."
    text = f"{n_within} of {len(trials)} trials keep the limits ({asked}); trial {winner.number} was chosen of them."
    freest = rank(trials, objectives)[0]
    if _beyond(freest, limits) == 0:  # it is the winner, or was confirmed to be worse: the limits took nothing away
        return text
    return (
        f"{text} Without limits it would have been trial {freest.number}, with {first.name} "
        f"{_number(freest.values[first.name])} instead of {_number(winner.values[first.name])}."
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
