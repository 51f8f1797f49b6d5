"""The registered parts. A part is one file of a slot's folder, the file's name is its registered name.

What a file may say: SPACE (param -> range), NEEDS, NEEDS_BY (param -> value -> need), CLASHES, DEMANDS (place in the
recipe -> the values it works with), COMPARES (what of the network it sets against its guide's: maps, the map of the
middle stage, or maps of equal widths), IGNORES (places in the recipe that mean nothing beside it), SEARCHED;
ADDS_WEIGHTS if the finished network stays larger for it, INPUT_GRADIENT if its loss differentiates with respect to
inputs, CONV_TAPS if it looks at last convolutions, DECAYS_NEW (the param b, if b/2 ||w||^2 is all it does to new
weights); and any of the six functions that `fit` calls:

    prepare(bench, **params) -> dict[str, Tensor]               once per fit, before training, the network at its start
    rebuild(net, site, **params) -> Rebuilt                     change the network
    phases(plan, **params) -> Generator[Phase, Outcome, None]   at most one part of a recipe
    draw(pools, outcome, rng, **params) -> Drawn                the items of the coming epoch
    loss(step, **params) -> Tensor                              () added to the task loss; a distillation's replaces it
    after_step(weights, start, lr, state, **params) -> None     in place, after every optimizer step
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from domain.catalogue import PartFacts
from domain.errors import Invalid
from domain.recipe import SLOTS, Part, Recipe
from domain.space import Range, Value

FOLDERS: dict[str, str] = {
    "surgery": "surgery", "regularizer": "regularizers", "feature": "features", "distillation": "distillation",
    "schedule": "schedules", "sampling": "sampling", "averaging": "averaging",
}  # fmt: skip
FUNCTIONS = ("prepare", "rebuild", "phases", "draw", "loss", "after_step")


@dataclass(frozen=True)
class BoundPart:
    """A part as a recipe uses it: the file, and a value for each of its params."""

    slot: str
    name: str
    module: Any
    params: Mapping[str, Value]
    needs: frozenset[str] = frozenset()
    functions: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.slot}.{self.name}"

    def says(self, function: str) -> bool:
        return function in self.functions

    def flag(self, name: str) -> bool:
        return bool(getattr(self.module, name, False))

    def call(self, function: str, *args: Any) -> Any:
        return self.functions[function](*args, **self.params)


@cache
def names(slot: str) -> tuple[str, ...]:
    """The registered parts of a slot."""
    package = importlib.import_module(f"transfer.{FOLDERS[slot]}")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")))


def load(slot: str, name: str) -> ModuleType:
    """The file that is registered as `name`."""
    if name not in names(slot):
        legal = ", ".join(names(slot)) or "none"
        raise Invalid(f"unknown_{slot}", f"there is no {slot} {name!r}; there are {legal}", legal=list(names(slot)))
    return importlib.import_module(f"transfer.{FOLDERS[slot]}.{name}")


def facts(slot: str, name: str) -> PartFacts:
    """What the catalogue says of a part."""
    module = load(slot, name)
    return PartFacts(
        slot=slot, name=name, summary=(module.__doc__ or "").strip().partition("\n")[0],
        space=_space(module), needs=tuple(getattr(module, "NEEDS", ())),
        needs_by={param: dict(table) for param, table in getattr(module, "NEEDS_BY", {}).items()},
        clashes=tuple(getattr(module, "CLASHES", ())),
        adds_weights=bool(getattr(module, "ADDS_WEIGHTS", False)), demands=dict(getattr(module, "DEMANDS", {})),
        compares=getattr(module, "COMPARES", None), ignores=tuple(getattr(module, "IGNORES", ())),
        functions=tuple(f for f in FUNCTIONS if hasattr(module, f)), searched=bool(getattr(module, "SEARCHED", False)),
    )  # fmt: skip


def every_part() -> list[PartFacts]:
    """The facts of all parts, in the order of the slots."""
    return [facts(slot, name) for slot in SLOTS for name in names(slot)]


def bind(slot: str, part: Part) -> BoundPart:
    """The part with its params, those that the recipe leaves out at their default."""
    return bind_module(slot, part.name, load(slot, part.name), part.params)


def bind_module(slot: str, name: str, module: Any, params: Mapping[str, Value]) -> BoundPart:
    defaults = {key: range_.default for key, range_ in _space(module).items()}
    params = {**defaults, **params}
    by_value = (table.get(str(params[param])) for param, table in getattr(module, "NEEDS_BY", {}).items())
    return BoundPart(
        slot=slot, name=name, module=module, params=params,
        needs=frozenset((*getattr(module, "NEEDS", ()), *(need for need in by_value if need is not None))),
        functions={f: getattr(module, f) for f in FUNCTIONS if hasattr(module, f)},
    )  # fmt: skip


def bind_all(recipe: Recipe) -> list[BoundPart]:
    """The parts of a recipe, in the order of the slots."""
    return [bind(slot, part) for slot, part in recipe.parts.items()]


def _space(module: Any) -> dict[str, Range]:
    return dict(getattr(module, "SPACE", {}))
