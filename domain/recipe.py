"""The recipe: everything needed to train one trial again, and the one function that says whether it is legal.

A recipe has three kinds of places: the network (source, backbone, head), one part or none per slot, and the
settings of optimization, data treatment and budget. Stored recipes outlive the code: `Recipe.model_validate` refuses a
`schema_version` it does not know.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.catalogue import Catalogue, PartFacts
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


def refusals(recipe: Recipe, provided: Iterable[str], catalogue: Catalogue) -> list[Refusal]:
    """Every reason why `recipe` cannot be trained; empty means legal.

    `provided` is what the job offers (`start`, `source_head`, `source_data`, `teacher`); the backbone's own facts
    (`taps`, `conv`, `batch_norm`, `blocks`, `transformer`, …) are added here. A part states what it has no meaning
    without in NEEDS, what one value of a param needs in NEEDS_BY, and in CLASHES the slots or `slot.name`s that it
    cannot stand beside.
    """
    backbone = catalogue.backbone(recipe.backbone)
    # That a backbone can carry a source's head is not to say that this source has one.
    have = set(provided) | (set(backbone.provides) - {"source_head"})
    found: list[Refusal] = []
    filled = recipe.parts
    names = {f"{slot}.{part.name}" for slot, part in filled.items()} | set(filled)
    planners = []
    for slot, part in filled.items():
        facts = catalogue.part(slot, part.name)
        label = f"{slot}.{part.name}"
        found += [
            Refusal(code="part_needs", detail=f"{label} needs {need}, which this job or backbone does not provide")
            for need in facts.needs_of(part.params)
            if need not in have
        ]
        found += [
            Refusal(code="parts_clash", detail=f"{label} cannot stand beside {clash}")
            for clash in facts.clashes
            if clash in names and clash != label
        ]
        for path, legal_values in facts.demands.items():
            value = at(recipe, path)
            if value not in legal_values:
                legal = " or ".join(map(str, legal_values))
                found.append(
                    Refusal(code="part_demands", detail=f"{label} works with {path} = {legal}, and this is {value!r}")
                )
        if "phases" in facts.functions:
            planners.append(label)
        for name, value in part.params.items():
            range_ = facts.space.get(name)
            if range_ is None:
                legal = ", ".join(facts.space) or "none"
                found.append(Refusal(code="unknown_param", detail=f"{label} has no param {name!r}; it has {legal}"))
            elif not range_.holds(value):
                found.append(Refusal(code="param_out_of_range", detail=f"{label}.{name} = {value!r} is out of range"))
    if len(planners) > 1:
        found.append(Refusal(code="parts_clash", detail=f"{' and '.join(planners)} both plan the phases of training"))
    if recipe.data.resolution < backbone.min_resolution or (
        backbone.fixed_resolution and recipe.data.resolution != backbone.fixed_resolution
    ):
        need = backbone.fixed_resolution or f"at least {backbone.min_resolution}"
        detail = f"{recipe.backbone} needs resolution {need}, got {recipe.data.resolution}"
        found.append(Refusal(code="resolution_unsupported", detail=detail))
    return found


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
