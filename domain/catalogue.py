"""The catalogue: the facts of every registered part, backbone and task, readable without importing any of them.

`make catalogue` imports every file once (`python -m worker.catalogue`) and writes `domain/catalogue.json`;
the API and the search read that file alone.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from domain.errors import Invalid
from domain.space import Range, Value

T = TypeVar("T")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartFacts(Frozen):
    """What one file of `transfer/<slot>/` says of itself."""

    slot: str
    name: str
    summary: str  # first line of the file's docstring
    space: dict[str, Range] = Field(default_factory=dict)
    needs: tuple[str, ...] = ()
    needs_by: dict[str, dict[str, str]] = Field(default_factory=dict)  # param -> its value -> what that value needs
    clashes: tuple[str, ...] = ()
    adds_weights: bool = False  # its networks hold more than the backbone's weights: they are no plain source
    demands: dict[str, tuple[Value, ...]] = Field(default_factory=dict)  # place in the recipe -> values it works with
    compares: Literal["maps", "middle", "widths"] | None = None  # what of the network it sets against its guide's
    ignores: tuple[str, ...] = ()  # places in the recipe, or what they begin with, that mean nothing beside it
    functions: tuple[str, ...] = ()  # of prepare, rebuild, phases, draw, loss, after_step
    searched: bool = False  # in the default space; any other part is searched when a job names it

    def needs_of(self, params: Mapping[str, Value]) -> tuple[str, ...]:
        """What the part needs with these params, those left out at their default."""
        chosen = {name: params.get(name, self.space[name].default) for name in self.needs_by}
        by_value = (table.get(str(chosen[name])) for name, table in self.needs_by.items())
        return (*self.needs, *(need for need in by_value if need is not None))


class WeightsFacts(Frozen):
    """Pretrained weights that torchvision publishes for a backbone."""

    name: str
    n_classes: int
    licence: str
    accuracy: float | None = None  # top-1 on ImageNet, percent


class Preprocessing(Frozen):
    """Evaluation pixels: short side to `resize`, centre crop `crop`, then (x / 255 - mean) / std."""

    resize: int
    crop: int
    interpolation: str  # "bilinear" | "bicubic" | "nearest" | "lanczos"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class BackboneFacts(Frozen):
    family: str
    name: str
    summary: str
    stages: tuple[str, ...]  # input side first
    taps: tuple[str, ...]
    tap_widths: tuple[int, ...] = ()  # channels of the map at each tap
    provides: tuple[str, ...]  # of taps, conv, conv3x3, batch_norm, blocks, transformer, source_head, double_backward
    feature_dim: int
    head: str | None = None  # what torchvision calls its last layer, the source head of published weights
    n_weights: int
    preprocessing: Preprocessing
    min_resolution: int
    fixed_resolution: int | None = None
    resolutions: tuple[int, ...]
    weights: tuple[WeightsFacts, ...] = ()

    @property
    def legal_resolutions(self) -> tuple[int, ...]:
        """What a job may ask for: those worth searching, and every multiple of 32 up to 512."""
        if self.fixed_resolution is not None:
            return (self.fixed_resolution,)
        return tuple(sorted({*self.resolutions, *(s for s in range(32, 513, 32) if s >= self.min_resolution)}))


class TaskFacts(Frozen):
    name: str
    summary: str
    objectives: tuple[str, ...]
    space: dict[str, Range]  # the dimensions that are no part's own: optimizer, data, budget, batch norm
    legal: dict[str, Range] = Field(default_factory=dict)  # where a job may go beyond them


class Catalogue(Frozen):
    parts: tuple[PartFacts, ...]
    backbones: tuple[BackboneFacts, ...]
    tasks: tuple[TaskFacts, ...]

    def part(self, slot: str, name: str) -> PartFacts:
        return _find({p.name: p for p in self.parts if p.slot == slot}, name, f"unknown_{slot}", slot)

    def backbone(self, name: str) -> BackboneFacts:
        return _find({b.name: b for b in self.backbones}, name, "unknown_backbone", "backbone")

    def task(self, name: str) -> TaskFacts:
        return _find({t.name: t for t in self.tasks}, name, "unknown_task", "task")


def _find(known: dict[str, T], name: str, code: str, noun: str) -> T:
    if name not in known:
        legal = ", ".join(sorted(known))
        raise Invalid(code, f"there is no {noun} {name!r}; there are {legal}", legal=sorted(known))
    return known[name]


@cache
def catalogue() -> Catalogue:
    """The committed catalogue, read once."""
    return Catalogue.model_validate_json(files("domain").joinpath("catalogue.json").read_text("utf-8"))
