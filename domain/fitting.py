"""A recipe that is known from elsewhere, brought into the space of a job."""

from domain.job import Values
from domain.recipe import SLOTS
from domain.space import Choice, FloatRange, IntRange, Space, Value


def fitted(space: Space, wanted: Values, *, source: str) -> Values | None:
    """`wanted` with what the space does not search left out, numbers clipped to its ranges, the rest at its default.

    None if it is a recipe of a part that the space does not have: with another part it would be another recipe. What
    the space has fixed stands, and so do its conditions. A slot that `wanted` does not know stays empty where it may.
    """
    values: Values = {**space.fixed, "source": source}
    for dimension in space.dimensions:
        path, range_ = dimension.path, dimension.range
        if path == "source" or not dimension.active(values):
            continue
        known = wanted.get(path, "none" if path in SLOTS else None)
        value = None if known is None else _nearest(range_, known)
        if value is None and path in SLOTS and path in wanted:
            return None
        values[path] = range_.default if value is None else value
    return values


def _nearest(range_: FloatRange | IntRange | Choice, value: Value) -> Value | None:
    """The legal value nearest to `value`; None if there is no telling."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(range_, Choice):
        if range_.holds(value):
            return next(o for o in range_.options if o == value)
        numbers = [o for o in range_.options if isinstance(o, int | float) and not isinstance(o, bool)]
        if not is_number or len(numbers) < len(range_.options):
            return None
        return min(numbers, key=lambda o: abs(o - float(value)))
    if not is_number:
        return None
    clipped = min(max(float(value), range_.low), range_.high)
    return round(clipped) if isinstance(range_, IntRange) else clipped
