"""Search-space primitives: what a part, a task or a job may say about the values that can be searched.

A dimension has a dotted path that is its place in the recipe (`optimizer.lr_head`, `regularizer.l2_sp.alpha`).
The value at a slot's own path (`regularizer`) is the name of the part that fills it, or "none".
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from domain.errors import Invalid

Value = bool | int | float | str


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FloatRange(Frozen):
    """Real numbers in [low, high]; `log` searches their logarithm."""

    kind: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    default: float

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_bounds(self.low, self.high, self.default, self.log)
        return self

    def holds(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high


class IntRange(Frozen):
    """Whole numbers in [low, high], both ends included."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    default: int

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_bounds(self.low, self.high, self.default, self.log)
        return self

    def holds(self, value: Any) -> bool:
        return _is_number(value) and value == int(value) and self.low <= value <= self.high


class Choice(Frozen):
    """One of a few named options."""

    kind: Literal["choice"] = "choice"
    options: tuple[Value, ...] = Field(min_length=1)
    default: Value

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.default not in self.options:
            raise ValueError(f"default {self.default!r} is not among {list(self.options)}")
        return self

    def holds(self, value: Any) -> bool:
        # True == 1 in Python; a switch is not a count.
        return any(value == o and isinstance(value, bool) == isinstance(o, bool) for o in self.options)


Range = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]


class Condition(Frozen):
    """Active only while the value at `path` is one of `values`."""

    path: str
    values: tuple[Value, ...]


class Dimension(Frozen):
    path: str
    range: Range
    when: tuple[Condition, ...] = ()

    def active(self, values: dict[str, Value]) -> bool:
        return all(values.get(c.path) in c.values for c in self.when)


class Space(Frozen):
    """An ordered list of dimensions, conditions pointing backwards only, and the values that are fixed."""

    dimensions: tuple[Dimension, ...]
    fixed: dict[str, Value] = Field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        return [d.path for d in self.dimensions] + list(self.fixed)

    def defaults(self) -> dict[str, Value]:
        """The values of the recipe that leaves everything at its default."""
        values = dict(self.fixed)
        for dimension in self.dimensions:
            if dimension.active(values):
                values[dimension.path] = dimension.range.default
        return values

    def narrow(self, overrides: dict[str, Any]) -> "Space":
        """Fix (`path: value`) or narrow (`path: {"low", "high"}` or `path: [options]`) dimensions of this space."""
        unknown = sorted(set(overrides) - set(self.paths))
        if unknown:
            raise Invalid(
                "unknown_dimension", f"no dimension {', '.join(unknown)}; there are {', '.join(sorted(self.paths))}",
                unknown=unknown, legal=sorted(self.paths),
            )  # fmt: skip
        fixed = {p: v for p, v in self.fixed.items() if p not in overrides}
        kept: list[Dimension] = []
        ranges = {d.path: d for d in self.dimensions}
        for path, value in self.fixed.items():
            if path in overrides and overrides[path] != value:
                raise Invalid("dimension_fixed", f"{path} is fixed to {value!r} by this job", path=path)
            fixed[path] = value
        for path, dimension in ranges.items():
            if path not in overrides:
                kept.append(dimension)
                continue
            narrowed = _narrow(path, dimension.range, overrides[path])
            if isinstance(narrowed, FloatRange | IntRange | Choice):
                kept.append(dimension.model_copy(update={"range": narrowed}))
            elif dimension.when:  # a fixed conditional value stays conditional: one option
                only = Choice(options=(narrowed,), default=narrowed)
                kept.append(dimension.model_copy(update={"range": only}))
            else:
                fixed[path] = narrowed
        return Space(dimensions=tuple(kept), fixed=fixed)


def _narrow(path: str, old: FloatRange | IntRange | Choice, new: Any) -> FloatRange | IntRange | Choice | Value:
    """The narrowed range, or the one value that is left."""
    if isinstance(new, dict):
        if isinstance(old, Choice) or not set(new) <= {"low", "high"}:
            raise Invalid("bad_dimension", f"{path}: give a value, a list of values{_bounds_hint(old)}", path=path)
        low, high = new.get("low", old.low), new.get("high", old.high)
        if not (old.holds(low) and old.holds(high)) or low > high:
            raise Invalid(
                "bad_dimension", f"{path}: need {old.low} <= low <= high <= {old.high}, got low={low}, high={high}",
                path=path, low=old.low, high=old.high,
            )  # fmt: skip
        if low == high:
            return _cast(old, low)
        default = min(max(old.default, low), high)
        return old.model_copy(update={"low": _cast(old, low), "high": _cast(old, high), "default": _cast(old, default)})
    if isinstance(new, list | tuple):
        if not new or not all(old.holds(v) for v in new):
            raise Invalid("bad_dimension", f"{path}: {list(new)} must be values from {_legal(old)}", path=path)
        if len(new) == 1:
            return _cast(old, new[0])
        options = tuple(_cast(old, v) for v in new)
        return Choice(options=options, default=old.default if old.default in options else options[0])
    if not old.holds(new):
        raise Invalid("bad_dimension", f"{path}: {new!r} is not in {_legal(old)}", path=path)
    return _cast(old, new)


def _cast(range_: FloatRange | IntRange | Choice, value: Any) -> Value:
    if isinstance(range_, IntRange):
        return int(value)
    if isinstance(range_, FloatRange):
        return float(value)
    return next(o for o in range_.options if o == value)


def _legal(range_: FloatRange | IntRange | Choice) -> str:
    if isinstance(range_, Choice):
        return ", ".join(str(o) for o in range_.options)
    return f"[{range_.low}, {range_.high}]"


def _bounds_hint(range_: FloatRange | IntRange | Choice) -> str:
    return "" if isinstance(range_, Choice) else ' or {"low": …, "high": …}'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_bounds(low: float, high: float, default: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)) or not low <= default <= high:
        raise ValueError(f"need low <= default <= high, got low={low}, default={default}, high={high}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range needs low > 0, got {low}")
