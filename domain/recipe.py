"""The recipe: everything needed to train one trial again, and the one function that says whether it is legal.

A recipe has three kinds of places: the network (source, backbone, head), one part or none per slot, and the
settings of optimization, data treatment and budget. Stored recipes outlive the code: `Recipe.model_validate` refuses a
`schema_version` it does not know.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.catalogue import BackboneFacts, Catalogue, PartFacts
from domain.space import Value

SLOTS = ("surgery", "regularizer", "feature", "distillation", "schedule", "sampling", "averaging")


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(Frozen):
    """The method that fills a slot: its registered name and its searched values."""

    name: str
    params: dict[str, Value] = Field(default_factory=dict)


class Head(Frozen):
    """`linear`: features -> classes. `mlp`: features -> 2 x width -> classes, one hidden layer with ReLU."""

    kind: Literal["linear", "mlp"] = "linear"


class Optimizer(Frozen):
    """The head learns at lr_head, stage s of n, input side first, at lr_head inner_ratio stage_decay^(n - 1 - s)."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr_head: Annotated[float, Field(gt=0)] = 1e-2
    inner_ratio: Annotated[float, Field(ge=0, le=10)] = 0.1
    stage_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    grad_clip: Annotated[float, Field(ge=0)] = 1.0  # largest global gradient norm; 0 switches it off
    warmup_frac: Annotated[float, Field(ge=0, lt=1)] = 0.05


class DataTreatment(Frozen):
    batch_size: Annotated[int, Field(ge=1)] = 64
    resolution: Annotated[int, Field(ge=8)] = 224
    augmentation: Annotated[float, Field(ge=0, le=1)] = 0.5  # 0 = evaluation pixels, 1 = crops of 20..100 % of the area
    flip: bool = True
    mixup_alpha: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of each class's training items, by the trial's seed
    views: Annotated[int, Field(ge=0, le=64)] = 0  # different looks of an item, shown in turn; 0: a new one every epoch


class Recipe(Frozen):
    schema_version: Literal[1] = 1
    task: str
    source: str  # "torchvision:<backbone>", "src_…", "job_…" or "scratch:<backbone>"
    backbone: str
    head: Head = Head()
    surgery: Part | None = None
    regularizer: Part | None = None
    feature: Part | None = None
    distillation: Part | None = None
    schedule: Part | None = None
    sampling: Part | None = None
    averaging: Part | None = None
    batch_norm: Literal["train", "eval", "frozen"] = "train"
    optimizer: Optimizer = Optimizer()
    data: DataTreatment = DataTreatment()
    steps: Annotated[int, Field(ge=1)] = 500
    seed: int = 0

    @property
    def parts(self) -> dict[str, Part]:
        """The filled slots, in the order of `SLOTS`."""
        return {slot: part for slot in SLOTS if (part := getattr(self, slot)) is not None}


class Refusal(Frozen):
    """Why a recipe cannot be trained: a stable code, and a sentence."""

    code: str
    detail: str


def compose(values: dict[str, Value], *, task: str, backbone: str, seed: int) -> Recipe:
    """A recipe from flat values by path, as a search space produces them.

    `{"optimizer.lr_head": 0.01, "regularizer": "l2_sp", "regularizer.l2_sp.alpha": 0.1, …}`
    """
    flat: dict[str, Any] = {"task": task, "backbone": backbone, "seed": seed}
    for path, value in values.items():
        head, _, rest = path.partition(".")
        if head in SLOTS:
            if not rest:
                flat[head] = None if value == "none" else {"name": value, "params": _params(values, head, str(value))}
        elif rest:
            flat.setdefault(head, {})[rest] = value
        else:
            flat[path] = value
    return Recipe.model_validate(flat)


def refusals(
    recipe: Recipe, provided: Iterable[str], catalogue: Catalogue, teachers: Sequence[str] = ()
) -> list[Refusal]:
    """Every reason why `recipe` cannot be trained; empty means legal.

    `provided` is what the job offers (`start`, `source_head`, `source_data`, `teacher`); the backbone's own facts
    (`taps`, `conv`, `batch_norm`, `blocks`, `transformer`, …) are added here. `teachers` are the backbones that may
    come to teach. A part states what it has no meaning without in NEEDS, what one value of a param needs in NEEDS_BY,
    in CLASHES the slots or `slot.name`s that it cannot stand beside, and in COMPARES what it sets against its guide's.
    """
    have = offered(provided, recipe.backbone, catalogue)
    found: list[Refusal] = []
    parts = [catalogue.part(slot, part.name) for slot, part in recipe.parts.items()]
    for facts, (slot, part) in zip(parts, recipe.parts.items(), strict=True):
        found += refused_alone(slot, part, recipe.backbone, have, catalogue, teachers)
        found += [
            refused_demand(f"{slot}.{part.name}", path, legal, at(recipe, path))
            for path, legal in facts.demands.items()
            if at(recipe, path) not in legal
        ]
        found += _refused_params(f"{slot}.{part.name}", part, facts)
    found += [refused_clash(a, b) for a, b in combinations(parts, 2) if not can_stand_beside(a, b)]
    return found + refused_resolution(recipe.data.resolution, catalogue.backbone(recipe.backbone))


def offered(provided: Iterable[str], backbone: str, catalogue: Catalogue) -> frozenset[str]:
    """What a job and a backbone offer together."""
    # That a backbone can carry a source's head is not to say that this source has one.
    return frozenset(provided) | (set(catalogue.backbone(backbone).provides) - {"source_head"})


def refused_alone(
    slot: str, part: Part, backbone: str, have: Collection[str], catalogue: Catalogue, teachers: Sequence[str]
) -> list[Refusal]:
    """Why a part has no meaning on this backbone, whatever else the recipe holds."""
    facts = catalogue.part(slot, part.name)
    label, needs = f"{slot}.{part.name}", facts.needs_of(part.params)
    found = [
        Refusal(code="part_needs", detail=f"{label} needs {need}, which this job or backbone does not provide")
        for need in needs
        if need not in have
    ]
    if facts.compares is not None and not found:
        own = catalogue.backbone(backbone)
        guides = [catalogue.backbone(name) for name in teachers] if "teacher" in needs else [own]
        reasons = (_incomparable(facts.compares, own, guide) for guide in guides)
        if reason := next((r for r in reasons if r is not None), None):
            found.append(Refusal(code="guide_differs", detail=f"{label} {reason}"))
    return found


def _incomparable(what: str, own: BackboneFacts, guide: BackboneFacts) -> str | None:
    """Why the insides of two networks cannot be set against each other; None if they can."""
    if what == "middle":
        lacking = next((b for b in (own, guide) if b.stages[(len(b.stages) - 1) // 2] not in b.taps), None)
        return None if lacking is None else f"guides the middle stage, and that of {lacking.name} has no map"
    if what == "maps":
        lacking = next((b for b in (own, guide) if not b.taps), None)
        return None if lacking is None else f"compares maps, and {lacking.name} has none"
    n = min(len(own.tap_widths), len(guide.tap_widths))
    if n < 2:
        return f"needs two stages with maps, {own.name} and {guide.name} share fewer"
    mine, its = own.tap_widths[-n:], guide.tap_widths[-n:]
    if mine == its:
        return None
    return (
        f"compares maps of equal widths: the last ones of {own.name} have {_listed(mine)} channels, those of "
        f"{guide.name}, which may be its guide, {_listed(its)}; take a teacher of the same widths, or the source as "
        "the guide"
    )


def refused_demand(label: str, path: str, legal_values: Iterable[Value], value: Any) -> Refusal:
    legal = " or ".join(map(str, legal_values))
    return Refusal(code="part_demands", detail=f"{label} works with {path} = {legal}, and this is {value!r}")


def refused_clash(one: PartFacts, other: PartFacts) -> Refusal:
    """Why two parts that cannot stand beside each other cannot."""
    for a, b in ((one, other), (other, one)):
        if clash := next((c for c in a.clashes if c in (b.slot, f"{b.slot}.{b.name}")), None):
            return Refusal(code="parts_clash", detail=f"{a.slot}.{a.name} cannot stand beside {clash}")
    both = f"{one.slot}.{one.name} and {other.slot}.{other.name}"
    return Refusal(code="parts_clash", detail=f"{both} both plan the phases of training")


def refused_resolution(resolution: int, backbone: BackboneFacts) -> list[Refusal]:
    """Why a backbone cannot take pictures of this side."""
    fixed = backbone.fixed_resolution
    if resolution >= backbone.min_resolution and fixed in (None, resolution):
        return []
    detail = f"{backbone.name} needs resolution {fixed or f'at least {backbone.min_resolution}'}, got {resolution}"
    return [Refusal(code="resolution_unsupported", detail=detail)]


def _refused_params(label: str, part: Part, facts: PartFacts) -> list[Refusal]:
    found = []
    for name, value in part.params.items():
        range_ = facts.space.get(name)
        if range_ is None:
            legal = ", ".join(facts.space) or "none"
            found.append(Refusal(code="unknown_param", detail=f"{label} has no param {name!r}; it has {legal}"))
        elif not range_.holds(value):
            found.append(Refusal(code="param_out_of_range", detail=f"{label}.{name} = {value!r} is out of range"))
    return found


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def at(recipe: Recipe, path: str) -> Any:
    """The value at a dotted path of a recipe, such as `optimizer.name`."""
    found: Any = recipe
    for word in path.split("."):
        found = getattr(found, word)
    return found


def can_stand_beside(one: PartFacts, other: PartFacts) -> bool:
    """Whether two parts of different slots may fill one recipe together."""
    if "phases" in one.functions and "phases" in other.functions:
        return False
    pairs = ((one, other), (other, one))
    return not any({b.slot, f"{b.slot}.{b.name}"} & set(a.clashes) for a, b in pairs)


def _params(values: dict[str, Value], slot: str, name: str) -> dict[str, Value]:
    prefix = f"{slot}.{name}."
    return {path.removeprefix(prefix): value for path, value in values.items() if path.startswith(prefix)}
