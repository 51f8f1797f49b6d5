"""When a search is over, and how a budget grows."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import ValidationError

from domain.errors import Invalid
from domain.job import Budget, Objective

Spent = Literal["target", "patience", "trials", "time", "device_time"]

# A budget of time may be overrun by this much, whichever is more.
LATE_SHARE = 0.05
LATE_S = 15.0


class Attempt(NamedTuple):
    """A trial that came far enough to be ranked."""

    searched: bool  # and not a fixed recipe, or an old one under another seed
    value: float | None  # None: it cannot be the best


class Standing(NamedTuple):
    """What a job has spent so far."""

    n_trials: int  # that have ended
    wall_s: float
    device_s: float
    attempts: Sequence[Attempt]  # in the order in which they ended


def spent(budget: Budget, standing: Standing, *, until_s: float, direction: str) -> Spent | None:
    """Which part of the budget is spent, if any. `until_s` is the wall time at which training has to end."""
    values = [a.value if direction == "maximize" else -a.value for a in standing.attempts if a.value is not None]
    if budget.target is not None and values:
        target = budget.target if direction == "maximize" else -budget.target
        if max(values) >= target:
            return "target"
    if budget.patience is not None and n_in_vain(standing.attempts, direction) >= budget.patience:
        return "patience"
    if budget.trials is not None and standing.n_trials >= budget.trials:
        return "trials"
    if budget.wall_s is not None and standing.wall_s >= until_s:
        return "time"
    if budget.device_s is not None and standing.device_s >= budget.device_s:
        return "device_time"
    return None


def n_in_vain(attempts: Sequence[Attempt], direction: str) -> int:
    """Searched trials since the one that is best; 0 before there is one."""
    best: float | None = None
    n = 0
    for attempt in attempts:
        n += attempt.searched
        if attempt.value is not None:
            value = attempt.value if direction == "maximize" else -attempt.value
            if best is None or value > best:
                best, n = value, 0
    return 0 if best is None else n


def last_call_s(wall_s: float, finish_s: float, *, has_result: bool) -> float:
    """The wall time at which training has to end, so that a finish of `finish_s` still fits into `wall_s`.

    Until there is a result, a trial may use up what the budget may be late by: a result a little late is worth more
    than none.
    """
    late_s = 0.0 if has_result else min(finish_s, max(LATE_SHARE * wall_s, LATE_S))
    return max(0.0, wall_s - finish_s + late_s)


def check_target(budget: Budget, objective: Objective) -> None:
    """Invalid if no trial can ever reach the target, or every trial does."""
    if budget.target is None:
        return
    if objective.name == "log_loss":
        if budget.target <= 0:
            raise Invalid("bad_target", f"log_loss is above 0, so a target of {budget.target:g} cannot be reached")
    elif not 0 < budget.target <= 1:
        detail = f"{objective.name} lies between 0 and 1: a target of {budget.target:g} says nothing"
        raise Invalid("bad_target", detail, low=0, high=1)


def extended(old: Budget, more: Mapping[str, float | None], objective: Objective) -> Budget:
    """The larger budget; what `more` leaves out stays. Invalid("budget_not_extended") for what would be smaller."""
    changes = {name: value for name, value in more.items() if value is not None}
    for name, value in changes.items():
        was = getattr(old, name)
        lowered = name == "target" and objective.direction == "minimize"
        if was is None or (value > was if lowered else value < was):
            limit = "unlimited" if was is None else f"{was:g}"
            way = "fall" if lowered else "grow"
            raise Invalid("budget_not_extended", f"{name} is {limit} and can only {way}, got {value:g}", field=name)
    try:
        new = Budget.model_validate(old.model_dump() | changes)
    except ValidationError as error:
        raise Invalid("validation_error", "; ".join(e["msg"] for e in error.errors())) from None
    check_target(new, objective)
    return new
