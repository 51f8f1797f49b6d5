"""Which options of a space can stand in a legal recipe, and the legal recipe nearest to one that is not.

Whatever a part asks for comes down to pairs of choices: a part and the source it starts from, two parts, a part and a
setting it works with, a source and a resolution. So this is a small search with constraints between two variables;
after each choice, what it rules out is taken from the others (forward checking), the fewest options first.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations, product
from typing import NamedTuple

from domain.catalogue import Catalogue
from domain.job import JobSpec, Values
from domain.recipe import (
    SLOTS,
    Part,
    Recipe,
    Refusal,
    at,
    can_stand_beside,
    offered,
    refused_alone,
    refused_clash,
    refused_demand,
    refused_resolution,
)  # fmt: skip
from domain.space import Choice, Space, Value

SOURCE, RESOLUTION = "source", "data.resolution"


class Option(NamedTuple):
    """A value of a variable; for the name of a part, with those params of it that bring needs of their own."""

    value: Value
    params: tuple[tuple[str, Value], ...] = ()


class Feasible:
    """The choices of a job, and which of them rule each other out."""

    def __init__(self, spec: JobSpec, catalogue: Catalogue) -> None:
        self._spec, self._catalogue = spec, catalogue
        self._known: dict[tuple[str, Option, str, Option], bool] = {}
        self.variables = self._read(spec.space)

    def deadlock(self) -> list[Refusal]:
        """The choices of two variables that all rule each other out: why there is no legal recipe at all.

        Empty where it takes three of them.
        """
        found: list[Refusal] = []
        for one, other in combinations(self.variables, 2):
            pairs = product(self.variables[one], self.variables[other])
            reasons = [self._conflict(one, a, other, b) for a, b in pairs]
            if None not in reasons:
                found += [r for r in reasons if r is not None]
        return list(dict.fromkeys(found))

    def can_hold(self, variable: str, option: Option) -> bool:
        """Whether any legal recipe has this option."""
        return self._completed({**self.variables, variable: (option,)}) is not None

    def refusals(self, variable: str, option: Option) -> list[Refusal]:
        """Why none has it: what it rules out wherever nothing else is on offer."""
        found: list[Refusal] = []
        for other, options in self.variables.items():
            reasons = [self._conflict(variable, option, other, o) for o in options if other != variable]
            if reasons and None not in reasons:
                # One source is as good as another here; of parts and settings, each is a way that is closed.
                found += [r for r in reasons[: 1 if other == SOURCE else None] if r is not None]
        return list(dict.fromkeys(found))

    def mended(self, values: Mapping[str, Value]) -> Values | None:
        """The legal choices nearest to these, those that come first in the space kept first; None if there are none."""
        wanted = {name: self._option(name, values) for name in self.variables}
        nearest = {
            name: sorted(options, key=partial(_distance, wanted[name])) for name, options in self.variables.items()
        }
        found = self._completed(nearest, in_order=True)
        if found is None:
            return None
        mended = dict(values)
        for dimension in self._spec.space.dimensions:
            path = dimension.path
            mended.pop(path, None)
            if not dimension.active(mended):
                continue
            if path in found:
                mended[path] = found[path].value
            else:
                slot, _, rest = path.partition(".")
                params = dict(found[slot].params) if slot in found else {}
                mended[path] = params.get(rest.partition(".")[2], values.get(path, dimension.range.default))
        return mended

    def _option(self, variable: str, values: Mapping[str, Value]) -> Option:
        value = values.get(variable, "none" if variable in SLOTS else "")
        if variable not in SLOTS or value == "none":
            return Option(value)
        brings = self._catalogue.part(variable, str(value)).needs_by
        return Option(value, tuple((p, values.get(f"{variable}.{value}.{p}", "")) for p in brings))

    def _read(self, space: Space) -> dict[str, tuple[Option, ...]]:
        choices: dict[str, tuple[Value, ...]] = {path: (value,) for path, value in space.fixed.items()}
        choices |= {d.path: d.range.options for d in space.dimensions if isinstance(d.range, Choice)}
        found = {SOURCE: tuple(Option(ref) for ref in choices.get(SOURCE, [s.ref for s in self._spec.sources]))}
        demanded = {RESOLUTION}
        for slot in (slot for slot in SLOTS if slot in choices):
            found[slot] = ()
            for name in choices[slot]:
                if name == "none":
                    found[slot] += (Option(name),)
                    continue
                part = self._catalogue.part(slot, str(name))
                demanded |= set(part.demands)
                legal = [
                    [(p, v) for v in choices.get(f"{slot}.{name}.{p}", (part.space[p].default,))] for p in part.needs_by
                ]
                found[slot] += tuple(Option(name, params) for params in product(*legal))
        plain = Recipe(task=self._spec.task, source="", backbone="")
        for path in sorted(demanded):
            found[path] = tuple(Option(value) for value in choices.get(path, (at(plain, path),)))
        return found

    def _completed(self, left: Mapping[str, Sequence[Option]], *, in_order: bool = False) -> dict[str, Option] | None:
        """One legal choice for each variable, or None."""
        if not left:
            return {}
        name = next(iter(left)) if in_order else min(left, key=lambda n: len(left[n]))
        for option in left[name]:
            others = {
                other: [o for o in options if self._fits(name, option, other, o)]
                for other, options in left.items()
                if other != name
            }
            if all(others.values()) and (rest := self._completed(others, in_order=in_order)) is not None:
                return {name: option, **rest}
        return None

    def _fits(self, one: str, a: Option, other: str, b: Option) -> bool:
        key = (one, a, other, b)
        if key not in self._known:
            self._known[key] = self._conflict(one, a, other, b) is None
        return self._known[key]

    def _conflict(self, one: str, a: Option, other: str, b: Option) -> Refusal | None:
        """Why two choices cannot stand in one recipe; None if they can."""
        if other == SOURCE or (other in SLOTS and one != SOURCE and one not in SLOTS):
            one, a, other, b = other, b, one, a  # a source comes first, then a part
        if one == SOURCE:
            return next(iter(self._refused_on(str(a.value), other, b)), None)
        if one not in SLOTS or a.value == "none" or b.value == "none":
            return None
        part = self._catalogue.part(one, str(a.value))
        if other not in SLOTS:
            legal = part.demands.get(other, (b.value,))
            return None if b.value in legal else refused_demand(f"{one}.{a.value}", other, legal, b.value)
        second = self._catalogue.part(other, str(b.value))
        return None if can_stand_beside(part, second) else refused_clash(part, second)

    def _refused_on(self, ref: str, variable: str, option: Option) -> list[Refusal]:
        """Why a source cannot take a part or a resolution."""
        spec, catalogue = self._spec, self._catalogue
        backbone = spec.source(ref).backbone
        if variable == RESOLUTION:
            return refused_resolution(int(option.value), catalogue.backbone(backbone))
        if variable not in SLOTS or option.value == "none":
            return []
        part = Part(name=str(option.value), params=dict(option.params))
        have = offered(spec.provided_by(ref), backbone, catalogue)
        return refused_alone(variable, part, backbone, have, catalogue, spec.teaching_backbones)


def _distance(wanted: Option, option: Option) -> tuple[bool, bool]:
    return option.value != wanted.value, option != wanted
