"""What a user asks for, and what it is worth in the end."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from domain.errors import Invalid
from domain.recipe import Recipe, compose
from domain.space import Space, Value


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Budget(Frozen):
    """When to stop searching: whichever comes first. At least one of the two is given; anchors count."""

    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    wall_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.trials is None and self.wall_s is None:
            raise ValueError("a budget of nothing: give trials, wall_s or both")
        return self


class Objective(Frozen):
    """What the study ranks by, on `val`."""

    name: Literal["accuracy", "log_loss", "macro_f1", "balanced_accuracy"]

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        return "minimize" if self.name == "log_loss" else "maximize"


class ResolvedSource(Frozen):
    """A source named by a job, looked up at submit: what is needed to find the weights and to compose recipes."""

    ref: str
    backbone: str
    kind: Literal["scratch", "torchvision", "registered", "job"]
    blob: str | None = None  # key of model weights (safetensors) in the blob store; None for scratch and torchvision
    classes: tuple[str, ...] = ()  # label space of the source's head, where known
    licence: str = "unknown"


class Teacher(Frozen):
    """A finished job whose best network teaches this one; it must have the same classes."""

    ref: str
    backbone: str
    head: str
    blob: str
    resolution: int


class JobSpec(Frozen):
    """A job as stored: checked against the dataset and the catalogue, defaults filled in, nothing left to look up."""

    schema_version: Literal[1] = 1
    task: str
    sources: tuple[ResolvedSource, ...] = Field(min_length=1)
    teacher: Teacher | None = None
    space: Space
    chosen: tuple[str, ...] = ()  # dimensions that the job itself fixed or narrowed
    budget: Budget
    objective: Objective
    n_folds: Annotated[int, Field(ge=1, le=5)]  # 1: one fit on train, ranked on val; K: K fits, then one on train + val
    sampler: str = "tpe"
    pruner: str = "median"
    anchors: bool = True
    parallel: int | None = None  # None: as many as there are workers
    keep_top: Annotated[int, Field(ge=1, le=50)] = 3
    seed: int = 0

    @property
    def provided(self) -> frozenset[str]:
        """What this job offers to the parts of a recipe, for any of its sources."""
        return frozenset({"teacher"} if self.teacher else set())

    def provided_by(self, ref: str) -> frozenset[str]:
        """What the job and one of its sources offer together."""
        source = self.source(ref)
        start = set() if source.kind == "scratch" else {"start", "source_head"}
        return self.provided | start

    def source(self, ref: str) -> ResolvedSource:
        return next(s for s in self.sources if s.ref == ref)

    def recipe(self, values: dict[str, Value], *, seed: int) -> Recipe:
        """The recipe of these values. Without a start nothing is transferred: one learning rate for all."""
        source = self.source(str(values["source"]))
        if source.kind == "scratch":
            values = {**values, "optimizer.inner_ratio": 1.0}
        return compose(values, task=self.task, backbone=source.backbone, seed=seed)


class Interval(Frozen):
    """A point estimate with a bootstrap interval."""

    value: float
    low: float
    high: float
    level: float = 0.95


class AnchorResult(Frozen):
    name: str
    trial_id: str
    number: int
    val: float
    test_accuracy: Interval
    lift: Interval  # winner's test accuracy minus this anchor's, paired over the same items


class JobResult(Frozen):
    """The honest account: numbers on `test`, read once, and what the search was worth."""

    best_trial_id: str
    best_number: int
    val: float
    metrics: dict[str, float]  # on test: accuracy, log_loss, macro_f1, balanced_accuracy, ece
    test_accuracy: Interval
    n_test: int
    n_test_looks: int  # how often this test split has been looked at, this job included
    selection_bias: float | None  # val minus test, in units of the objective
    calibration_temperature: float
    anchors: tuple[AnchorResult, ...] = ()
    verdict: str  # one plain sentence: did the search help?
    export: dict[str, Any] = Field(default_factory=dict)  # largest difference, items compared, near-ties


SOURCE_REF = re.compile(r"^(torchvision:[a-z0-9_]+|scratch:[a-z0-9_]+|src_[0-9a-f]+|job_[0-9a-f]+)$")

# Below these, one val split ranks by luck: docs/decisions/0006-small-validation-sets.md has the measurements.
LOG_LOSS_BELOW = 500
FOLDS_BELOW = 200


def default_objective(n_val: int) -> Objective:
    """Mean log-loss below 500 val items, accuracy from there on."""
    return Objective(name="log_loss" if n_val < LOG_LOSS_BELOW else "accuracy")


def default_folds(n_val: int) -> int:
    """Three stratified folds of train + val below 200 val items, one fit otherwise."""
    return 3 if n_val < FOLDS_BELOW else 1


def check_source_ref(ref: str) -> str:
    if not SOURCE_REF.match(ref):
        raise Invalid(
            "bad_source",
            f"{ref!r} is no source; write torchvision:<backbone>, scratch:<backbone>, or the id of a source or job",
        )
    return ref


Values = dict[str, Value]
