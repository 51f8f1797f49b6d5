"""Search-space primitives: what a part, a task or a job may say about the values that can be searched.

A dimension has a dotted path that is its place in the recipe (`optimizer.lr_head`, `regularizer.l2_sp.alpha`).
The value at a slot's own path (`regularizer`) is the name of the part that fills it, or "none".
"""

import math
from collections.abc import Mapping
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

    def changed(self, overrides: Mapping[str, Any], legal: Mapping[str, Range] | None = None) -> "Space":
        """The space with dimensions fixed (`path: value`), or searched elsewhere (`path: {"low", "high"}`, or
        `path: [options]`): inside what it searches now, and wherever `legal` has a range for the path, inside that."""
        legal = legal or {}
        unknown = sorted(set(overrides) - set(self.paths))
        if unknown:
            raise Invalid(
                "unknown_dimension", f"no dimension {', '.join(unknown)}; there are {', '.join(sorted(self.paths))}",
                unknown=unknown, legal=sorted(self.paths),
            )  # fmt: skip
        kept: list[Dimension] = []
        fixed: dict[str, Value] = {}
        opened = [
            Dimension(path=path, range=Choice(options=(value,), default=value)) for path, value in self.fixed.items()
        ]
        for dimension in (*opened, *self.dimensions):
            path, range_ = dimension.path, dimension.range
            changed = _changed(path, range_, overrides[path], legal.get(path, range_)) if path in overrides else range_
            if path in self.fixed and path not in overrides:
                fixed[path] = self.fixed[path]
            elif isinstance(changed, FloatRange | IntRange | Choice):
                kept.append(dimension.model_copy(update={"range": changed}))
            elif dimension.when:  # a fixed conditional value stays conditional: one option
                only = Choice(options=(changed,), default=changed)
                kept.append(dimension.model_copy(update={"range": only}))
            else:
                fixed[path] = changed
        return Space(dimensions=tuple(kept), fixed=fixed)


def _changed(path: str, old: Range, new: Any, legal: Range) -> Range | Value:
    """The new range of a dimension, or the one value that is left."""
    if isinstance(new, dict):
        return _between(path, old, new, legal)
    if isinstance(new, list | tuple):
        wrong = [v for v in new if not legal.holds(v)]
        if wrong or not new:
            said = ", ".join(map(repr, wrong)) or "an empty list"
            raise Invalid("bad_dimension", f"{path}: {said} is not legal; give {_told(legal)}", path=path)
        options = tuple(dict.fromkeys(_cast(legal, v) for v in new))
        return Choice(options=options, default=_nearest(options, old.default)) if len(options) > 1 else options[0]
    if not legal.holds(new):
        raise Invalid("bad_dimension", f"{path}: {new!r} is not legal; give {_told(legal)}", path=path)
    return _cast(legal, new)


def _between(path: str, old: Range, ends: dict[str, Any], legal: Range) -> Range | Value:
    """The range with these ends; one that is left out stays as it is, or gives way as far as is legal."""
    if isinstance(legal, Choice) or not ends or not set(ends) <= {"low", "high"}:
        raise Invalid("bad_dimension", f"{path}: give {_told(legal)}", path=path)
    own = sorted(float(o) for o in old.options) if isinstance(old, Choice) else (old.low, old.high)
    low, high = ends.get("low", own[0]), ends.get("high", own[-1])
    if legal.holds(low) and legal.holds(high) and low > high and len(ends) == 1:
        low, high = (low, legal.high) if "low" in ends else (legal.low, high)
    if not (legal.holds(low) and legal.holds(high)) or low > high:
        detail = f"{path}: need {legal.low:g} <= low <= high <= {legal.high:g}, got low={low}, high={high}"
        raise Invalid("bad_dimension", detail, path=path, low=legal.low, high=legal.high)
    if low == high:
        return _cast(legal, low)
    log = legal.log if isinstance(old, Choice) else old.log
    if log and low <= 0:
        detail = f"{path} is searched on a logarithmic scale, where low is above 0; a list of values may hold {low}"
        raise Invalid("bad_dimension", detail, path=path, low=legal.low, high=legal.high)
    default = min(max(float(old.default), low), high)
    given = {"low": _cast(legal, low), "high": _cast(legal, high), "log": log, "default": default}
    if isinstance(legal, IntRange):
        given["default"] = round(default)
    return legal.model_copy(update=given)


def _nearest(options: tuple[Value, ...], wanted: Value) -> Value:
    """The option that is the default: `wanted` itself, the number nearest to it, else the first."""
    if wanted in options or not all(_is_number(o) for o in (wanted, *options)):
        return wanted if wanted in options else options[0]
    return min(options, key=lambda o: abs(float(o) - float(wanted)))


def _cast(range_: Range, value: Any) -> Value:
    if isinstance(range_, IntRange):
        return int(value)
    if isinstance(range_, FloatRange):
        return float(value)
    return next(o for o in range_.options if o == value)


def _told(range_: Range) -> str:
    """What a dimension takes, as part of a sentence."""
    if isinstance(range_, Choice):
        shown = ", ".join(str(o).lower() if isinstance(o, bool) else str(o) for o in range_.options)
        return shown if len(range_.options) == 1 else f"one of {shown}, or a list of them"
    kind = "a whole number" if isinstance(range_, IntRange) else "a number"
    return f'{kind} from {range_.low:g} to {range_.high:g}, a list of them, or {{"low": …, "high": …}} between them'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_bounds(low: float, high: float, default: float, log: bool) -> None:
    if not (math.isfinite(low) and math.isfinite(high)) or not low <= default <= high:
        raise ValueError(f"need low <= default <= high, got low={low}, default={default}, high={high}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range needs low > 0, got {low}")
