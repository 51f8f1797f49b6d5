"""What a user asks for, and what it is worth in the end."""

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from domain.catalogue import Catalogue
from domain.errors import Invalid
from domain.recipe import DataTreatment, Head, Recipe, Refusal, compose, refusals
from domain.space import Space, Value


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Budget(Frozen):
    """When to stop searching: whichever comes first. One of `trials`, `wall_s` and `device_s` at least; anchors count.

    `wall_s` counts from the first trial to the bundle, finishing included, pauses left out.
    """

    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    wall_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    device_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of training, all workers together
    target: float | None = None  # the objective on val at which the search has done its work
    patience: Annotated[int, Field(ge=1)] | None = None  # searched trials in a row without a new best

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.trials is None and self.wall_s is None and self.device_s is None:
            raise ValueError("a budget of nothing: give trials, wall_s or device_s")
        if self.target is not None and not math.isfinite(self.target):
            raise ValueError("the target must be a finite number")
        return self


ObjectiveName = Literal[
    "accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc",  # of the predictions on val
    "latency_ms", "latency_batch_ms", "size_bytes", "source_accuracy",  # of the network itself
]  # fmt: skip
RANKING = ("accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc")  # what may come first
OF_NETWORK = ("latency_ms", "latency_batch_ms", "size_bytes", "source_accuracy")  # measured once a trial is trained
MAX_OBJECTIVES = 3  # a front of more is too wide to choose from, and every sampler loses its way
SMALLER_IS_BETTER = ("log_loss", "latency_ms", "latency_batch_ms", "size_bytes")


PresetName = Literal["fast", "balanced", "best"]


class Objective(Frozen):
    """A number that the study ranks by: of the predictions on `val`, or of the network.

    `latency_ms` is the median time of one item on the worker's device, `latency_batch_ms` that of 32 items together;
    `source_accuracy` is what the source's own head still gets right on the source dataset.
    """

    name: ObjectiveName

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        return "minimize" if self.name in SMALLER_IS_BETTER else "maximize"


class Limit(Frozen):
    """A rule for the pick: only trials whose objective keeps within the bound can win."""

    objective: ObjectiveName
    at_most: float | None = None
    at_least: float | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give at_most or at_least")
        wanted = "at_most" if self.objective in SMALLER_IS_BETTER else "at_least"
        if getattr(self, wanted) is None:
            less = "less" if wanted == "at_most" else "more"
            raise ValueError(f"of {self.objective}, {less} is better: limit it with {wanted}")
        if not 0 < self.bound < math.inf:
            raise ValueError(f"the limit of {self.objective} must be a number above zero")
        return self

    @property
    def bound(self) -> float:
        return float(self.at_most or self.at_least or 0.0)

    def holds(self, value: float) -> bool:
        return value <= self.bound if self.at_most is not None else value >= self.bound


class Fidelity(Frozen):
    """How a trial is tried cheaply first: a share of it at `low` of one dimension, the best then in full.

    `steps` needs no setting: every trial's curve runs along its share of steps, and pruners stop or pause it there.
    """

    dimension: Literal["resolution", "fraction"]  # of data: pixels per side, or part of the training items
    low: Annotated[float, Field(allow_inf_nan=False)]  # the cheap value
    promote: Annotated[float, Field(gt=0, le=1)] = 1 / 3  # part of the cheap trials that is run in full


class Confirm(Frozen):
    """The best recipes trained again with other seeds before one is chosen, inside the budget.

    Left out are anchors, closed forms, and what a teacher that the job trains itself has taught.
    """

    top: Annotated[int, Field(ge=1, le=10)] = 3
    seeds: Annotated[int, Field(ge=1, le=10)] = 2  # further seeds of each


class WarmStart(Frozen):
    """A recipe to try before the sampler is asked, and where it comes from."""

    values: dict[str, Value]
    why: str


class ResolvedSource(Frozen):
    """A source named by a job, looked up at submit: what is needed to find the weights and to compose recipes."""

    ref: str
    backbone: str
    kind: Literal["scratch", "torchvision", "registered", "job"]
    blob: str | None = None  # key of model weights (safetensors) in the blob store; None for scratch and torchvision
    classes: tuple[str, ...] = ()  # label space of the source's head, where known
    n_classes: Annotated[int, Field(ge=0)] = 0  # width of the source's own linear head; 0 if none is known
    licence: str = "unknown"


class Teacher(Frozen):
    """Who teaches the trials of a job that learn from a teacher; it knows the same classes in the same order.

    `job`: the best network of a COMPLETE job. `best`: the job's own best trial so far. `ensemble`: its best few, their
    probabilities averaged. `source`: other weights, which a trial of the job fine-tunes first.
    """

    kind: Literal["job", "best", "ensemble", "source"]
    ref: str  # as asked: the id of a job, "best", "ensemble", or a source
    trial_id: str | None = None  # of a job: the trial whose checkpoint `blob` is, and what network that is
    blob: str | None = None
    recipe: Recipe | None = None
    source: ResolvedSource | None = None  # of a source: where its trial starts, and that trial's values
    values: dict[str, Value] = Field(default_factory=dict)

    @property
    def trained_here(self) -> bool:
        """Whether trials of the job itself teach: then none can be taught before one of them is COMPLETE."""
        return self.kind != "job"

    @model_validator(mode="before")
    @classmethod
    def read_older(cls, given: Any) -> Any:
        """A teacher stored before there were several kinds: a job's checkpoint, told by backbone and head."""
        if not isinstance(given, dict) or "kind" in given or "backbone" not in given:
            return given
        recipe = Recipe(
            task="classification", source=f"scratch:{given['backbone']}", backbone=given["backbone"],
            head=Head(kind=given["head"]), data=DataTreatment(resolution=given["resolution"]),
        )  # fmt: skip
        ref = given["ref"]
        return {"kind": "job", "ref": ref, "trial_id": ref, "blob": given["blob"], "recipe": recipe}


MAX_MEMBERS = 5  # each costs its predictions in use, and the later ones bring little


class JobSpec(Frozen):
    """A job as stored: checked against the dataset and the catalogue, defaults filled in, nothing left to look up."""

    schema_version: Literal[1] = 1
    task: str
    sources: tuple[ResolvedSource, ...] = Field(min_length=1)
    teacher: Teacher | None = None
    source_dataset_id: str | None = None  # a dataset that the sources were trained on, or a related one
    space: Space
    chosen: tuple[str, ...] = ()  # dimensions that the job itself fixed or narrowed
    budget: Budget
    objectives: tuple[Objective, ...] = Field(min_length=1)  # the first ranks; the others make it a Pareto front
    limits: tuple[Limit, ...] = ()
    n_folds: Annotated[int, Field(ge=1, le=5)]  # 1: one fit on train, ranked on val; K: K fits, then one on train + val
    preset: PresetName = "balanced"
    sampler: str = "tpe"
    sampler_why: str = ""  # one sentence, where it was chosen for the job
    pruner: str = "median"
    fidelity: Fidelity | None = None
    confirm: Confirm | None = None
    combine: bool = True  # soups and ensembles of the best trials stand for election when the job is finished
    screen: bool = True  # the probe's ranking orders the sources and leaves hopeless ones out
    learn_from: Literal["workspace", "installation", "nothing"] = "workspace"  # whose past jobs say what to try first
    warm_starts: tuple[WarmStart, ...] = ()  # filled in by the probe
    anchors: bool = True
    parallel: int | None = None  # None: as many as there are workers
    keep_top: Annotated[int, Field(ge=1, le=50)] = 3
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def read_older(cls, given: Any) -> Any:
        """A job stored before it could have several objectives."""
        if isinstance(given, dict) and "objective" in given:
            given = {**given, "objectives": (given["objective"],)}
            del given["objective"]
        return given

    @property
    def objective(self) -> Objective:
        return self.objectives[0]

    @property
    def n_members(self) -> int:
        """How many of the trials that are kept may be joined to a soup or an ensemble."""
        return min(self.keep_top, MAX_MEMBERS)

    @property
    def provided(self) -> frozenset[str]:
        """What this job offers to the parts of a recipe, for any of its sources."""
        offers = {"teacher": self.teacher is not None, "source_data": self.source_dataset_id is not None}
        return frozenset(need for need, offered in offers.items() if offered)

    def provided_by(self, ref: str) -> frozenset[str]:
        """What the job and one of its sources offer together."""
        source = self.source(ref)
        offers = {"start": source.kind != "scratch", "source_head": source.n_classes > 0}
        return self.provided | {need for need, offered in offers.items() if offered}

    @property
    def teaching_backbones(self) -> tuple[str, ...]:
        """The networks that may come to teach: the teacher's, or those of all sources where the best trial is to."""
        teacher = self.teacher
        if teacher is None:
            return ()
        if teacher.recipe is not None:
            return (teacher.recipe.backbone,)
        return tuple(dict.fromkeys(s.backbone for s in ((teacher.source,) if teacher.source else self.sources)))

    def refusals(self, recipe: Recipe, catalogue: Catalogue) -> list[Refusal]:
        """Every reason why this job cannot train `recipe`; empty means legal."""
        return refusals(recipe, self.provided_by(recipe.source), catalogue, self.teaching_backbones)

    def source(self, ref: str) -> ResolvedSource:
        """A source of the job, or the one that its teacher starts from."""
        others = [self.teacher.source] if self.teacher and self.teacher.source else []
        return next(s for s in (*self.sources, *others) if s.ref == ref)

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


class FrontPoint(Frozen):
    """A trial that no other one beats in every objective."""

    trial_id: str
    number: int
    values: dict[str, float]  # objective -> value
    chosen: bool = False


CombinedKind = Literal["soup", "ensemble"]


class Combined(Frozen):
    """A soup or an ensemble of trials that stood for election: what it was worth on val, and whether it was taken."""

    kind: CombinedKind
    numbers: tuple[int, ...]  # of the trials in it
    val: float  # the objective, of calibrated probabilities, on items that did not choose it
    best_single: float  # on the same items
    taken: bool
    why: str


class Confirmed(Frozen):
    """A recipe that was trained with several seeds."""

    number: int  # of its first trial
    values: tuple[float, ...]  # the objective on val, one per seed, the first trial's own first
    mean: float


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
    summary: tuple[str, ...] = ()  # plain sentences: what mattered, what was chosen and why
    importance: dict[str, float] = Field(default_factory=dict)  # dimension -> share of the variance it explains
    front: tuple[FrontPoint, ...] = ()  # of several objectives
    combined: tuple[Combined, ...] = ()
    confirmed: tuple[Confirmed, ...] = ()
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
