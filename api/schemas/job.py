"""Jobs over the wire: what is asked for, and how it stands."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from api.schemas.text import Name
from domain.job import Budget, Confirm, Fidelity, JobResult, ObjectiveName, PresetName, WarmStart
from domain.space import Space
from domain.states import JobState

Ref = Annotated[str, Field(min_length=1, max_length=120)]
Scalar = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=120)]
PrunerName = Literal["extrapolation", "halving", "hyperband", "median", "none", "patience", "wilcoxon"]


class Bounds(BaseModel):
    """A narrower range of a dimension; an end left out stays as it is."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    low: StrictInt | StrictFloat | None = None
    high: StrictInt | StrictFloat | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("give low, high or both")
        return self


class LimitBound(BaseModel):
    """`at_most` for what is better small (latencies, size, log-loss), `at_least` for the rest."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    at_most: StrictInt | StrictFloat | None = None
    at_least: StrictInt | StrictFloat | None = None


class BudgetPart(BaseModel):
    """Some or all ends of a search; whichever comes first."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [{"trials": 50}, {"wall_s": 7200}]}
    )

    trials: Annotated[int, Field(ge=1, le=10_000)] | None = Field(default=None, description="Anchors count.")
    wall_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = Field(
        default=None, description="Seconds from the first trial to the bundle, pauses left out."
    )
    device_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Seconds of training, all workers together."
    )
    target: float | None = Field(default=None, description="The first objective on `val` that is good enough.")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Searched trials in a row without a new best."
    )

    @model_validator(mode="after")
    def check(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("give trials, wall_s, device_s, target or patience")
        return self


class BudgetMore(BudgetPart):
    """A larger budget, or a target further away; what is left out stays."""


Narrowing = Scalar | Annotated[list[Scalar], Field(max_length=200)] | Bounds


class JobCreate(BaseModel):
    """A request to search for the best way to transfer to a dataset. Only the dataset is needed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"dataset_id": "ds_0193c1f2a4d10f2b3c4d5e6f7081"},
                {"dataset_id": "ds_0193c1f2a4d10f2b3c4d5e6f7081", "preset": "fast", "budget": {"wall_s": 1800}},
                {
                    "name": "flowers, small networks", "dataset_id": "ds_0193c1f2a4d10f2b3c4d5e6f7081",
                    "sources": ["torchvision:resnet18", "job_0193c1f2a4d10f2b3c4d5e6f7081"], "budget": {"trials": 30},
                    "space": {"head.kind": "linear", "regularizer": ["l2", "l2_sp"],
                              "optimizer.lr_head": {"low": 0.001, "high": 0.1}},
                    "objective": "log_loss", "sampler": "tpe", "pruner": "median", "seed": 7,
                },
                {
                    "name": "flowers, quick ones", "dataset_id": "ds_0193c1f2a4d10f2b3c4d5e6f7081",
                    "budget": {"trials": 40}, "objectives": ["accuracy", "latency_ms"],
                    "limits": {"latency_ms": {"at_most": 20}, "size_bytes": {"at_most": 50_000_000}},
                },
            ]
        },
    )  # fmt: skip

    name: Name | None = None
    dataset_id: Ref
    preset: PresetName = Field(
        default="balanced",
        description="How much the answer is worth: `fast`, `balanced` or `best` set space, sources, budget, cheap "
        "first tries, pruner, folds and confirmation together. Whatever the request names itself stands instead.",
    )
    sources: Annotated[list[Ref], Field(min_length=1, max_length=20)] | None = Field(
        default=None,
        description="torchvision:<backbone>, scratch:<backbone>, the id of a source, or of a COMPLETE job. "
        "Default: the preset's, published ones.",
    )
    teacher: Ref | None = Field(
        default=None,
        description="Who teaches the trials that learn from a teacher: the id of a COMPLETE job with the same classes "
        "in the same order; `best`, this job's best trial so far; `ensemble`, its best three, their probabilities "
        "averaged; or a source (torchvision:<backbone>, the id of a registered one), which a trial of this job "
        "fine-tunes first.",
    )
    source_dataset_id: Ref | None = Field(
        default=None,
        description="A READY dataset of the same task that the sources were trained on, or one like it, for the parts "
        "that learn from source images as well.",
    )
    space: Annotated[dict[str, Narrowing], Field(max_length=200)] = Field(
        default_factory=dict,
        description="By path: fix a dimension (a value), or search it where you want (a list of values, or low and "
        "high), inside its legal range. The name of a part brings its params into the search.",
    )
    budget: BudgetPart | None = Field(
        default=None,
        description="When to stop. Default: the preset's, which also ends a search with a target or patience alone.",
    )
    objective: Literal["accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc"] | None = Field(
        default=None, description="What trials are ranked by, on `val`. Default: by the size of `val`."
    )
    objectives: Annotated[list[ObjectiveName], Field(min_length=1, max_length=9)] | None = Field(
        default=None,
        description="In place of `objective`, up to three. The first is one of those on `val`, and ranks; the others "
        "make the result a Pareto front: `latency_ms` of one image and `latency_batch_ms` of 32 (median, on the "
        "worker's device), `size_bytes` of the weights, `source_accuracy` (what the source's own head still gets right "
        "over the trained body, on the test split of `source_dataset_id`).",
    )
    limits: Annotated[dict[ObjectiveName, LimitBound], Field(max_length=9)] = Field(
        default_factory=dict,
        description="Only trials that keep within these can win. A limit may name what is no objective; it is measured "
        "all the same. If no trial keeps them, the nearest is handed back, and the result says so.",
    )
    n_folds: Annotated[int, Field(ge=1, le=5)] | None = Field(
        default=None, description="Fits per trial. Default: the preset's, or by the size of `val`."
    )
    sampler: Literal[
        "auto", "tpe", "random", "qmc", "gp", "cmaes", "nsga2", "nsga3", "pshe2", "pshe2_paddlehub", "hazero"
    ] = Field(default="auto", description="Who proposes recipes. `auto` chooses by space, trials and objectives.")
    pruner: PrunerName | None = Field(
        default=None,
        description="What stops trials early; the preset's by default. `halving` and `hyperband` pause them at rungs, "
        "and go on with those that turn out to be among the best; `wilcoxon` compares folds and needs three of them.",
    )
    fidelity: Fidelity | Literal[False] | None = Field(
        default=None,
        description="Try every searched trial cheaply first: at the `low` value of `resolution` (pixels per side) or "
        "of `fraction` (of the training items); the best part of them, `promote`, then runs in full. Default: the "
        "preset's; false: no.",
    )
    anchors: StrictBool = True
    screen: StrictBool = Field(
        default=True,
        description="Of several sources, start from the one that the probe ranks first, and leave out those that it "
        "finds hopeless. false: the order and the choice of the request.",
    )
    learn_from: Literal["workspace", "installation", "nothing"] = Field(
        default="workspace",
        description="Whose finished jobs say which recipes to try first: this workspace's, those of all workspaces "
        "(where the installation allows it), or nobody's.",
    )
    parallel: Annotated[int, Field(ge=1, le=256)] | None = Field(
        default=None, description="Trials at a time. Default: as many as there are workers."
    )
    keep_top: Annotated[int, Field(ge=1, le=50)] = 3
    combine: StrictBool | None = Field(
        default=None,
        description="Whether a soup (mean of weights) or an ensemble of the best `keep_top` trials, five at most, may "
        "be handed back, where val says that it is better. Default: the preset's.",
    )
    confirm: Confirm | Literal[False] | None = Field(
        default=None,
        description="Train the best `top` recipes again with `seeds` further seeds each, at the end of the budget and "
        "inside it, and choose by the mean over seeds. Default: the preset's; false: no.",
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class Cancel(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"keep": "best"}, {"keep": "nothing"}]})

    keep: Literal["best", "nothing"] = Field(
        default="best", description="`best`: finish with the best trial so far; `nothing`: end at once."
    )


class Progress(BaseModel):
    trials_done: int
    trials_total: int | None = Field(description="Of the budget; null when only time limits it.")
    by_state: dict[str, int]
    share: float = Field(ge=0, le=1, description="Part of the budget spent.")


class Best(BaseModel):
    """The best trial so far, by the objective on `val`."""

    trial_id: str
    number: int
    value: float | None
    anchor: str | None
    recipe: dict[str, Any]


class SourceInJob(BaseModel):
    ref: str
    backbone: str
    kind: Literal["scratch", "torchvision", "registered", "job"]
    licence: str


class Spec(BaseModel):
    """The request as it was understood, defaults filled in."""

    task: str
    preset: str
    sources: list[SourceInJob]
    teacher: str | None = Field(description="A job, `best`, `ensemble`, or a source.")
    source_dataset_id: str | None
    space: Space
    chosen: list[str] = Field(description="Dimensions that the request itself fixed or changed.")
    budget: Budget
    objective: str = Field(description="The first of the objectives: what trials are ranked by.")
    objectives: list[str]
    limits: dict[str, LimitBound]
    n_folds: int
    sampler: str
    sampler_why: str = Field(description="Why it was chosen, where `auto` was asked for.")
    pruner: str
    fidelity: Fidelity | None
    anchors: bool
    screen: bool
    learn_from: str
    warm_starts: list[WarmStart] = Field(description="What the probe found worth trying before the sampler is asked.")
    parallel: int | None
    keep_top: int
    combine: bool
    confirm: Confirm | None
    seed: int


_SPEC: dict[str, Any] = {
    "task": "classification", "preset": "balanced",
    "sources": [{"ref": "torchvision:resnet18", "backbone": "resnet18", "kind": "torchvision", "licence": "BSD"}],
    "teacher": None, "source_dataset_id": None, "space": {"dimensions": [], "fixed": {"batch_norm": "eval"}},
    "budget": {"trials": 20, "wall_s": None}, "objective": "log_loss",
    "objectives": ["log_loss"], "limits": {}, "n_folds": 3, "sampler": "tpe",
    "chosen": [], "sampler_why": "4 of 14 dimensions are choices",
    "pruner": "median", "fidelity": None, "anchors": True, "screen": True, "learn_from": "workspace", "warm_starts": [],
    "parallel": None, "keep_top": 3, "combine": True,
    "confirm": None, "seed": 0,
}  # fmt: skip


class Job(BaseModel):
    """A user's request and how it stands."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "job_0193c1f2a4d10f2b3c4d5e6f7081", "name": "flowers",
                    "dataset_id": "ds_0193c1f2a4d10f2b3c4d5e6f7081", "state": "RUNNING", "spec": _SPEC,
                    "progress": {"trials_done": 7, "trials_total": 20, "by_state": {"COMPLETE": 5, "PRUNED": 2,
                                 "RUNNING": 1}, "share": 0.35},
                    "best": {"trial_id": "tr_0193c1f2a4d10f2b3c4d5e6f7081", "number": 3, "value": 0.31,
                             "anchor": None, "recipe": {}},
                    "cost_s": 81.2, "elapsed_s": 90.1, "left_s": 167.0,
                    "estimate": {"s_per_trial": 12.0, "job_s": 240.0}, "stopped_by": None, "error": None,
                    "result": None,
                    "created_at": "2026-11-21T08:00:00Z", "started_at": "2026-11-21T08:00:01Z", "finished_at": None,
                }
            ]
        }
    )  # fmt: skip

    id: str
    name: str
    dataset_id: str
    state: JobState
    spec: Spec
    progress: Progress
    best: Best | None
    cost_s: float = Field(description="Seconds of training spent by all its trials.")
    elapsed_s: float = Field(description="Wall time since it began, pauses left out.")
    left_s: float | None = Field(description="A guess at the wall time left; null while nothing is known.")
    estimate: dict[str, Any] | None = Field(
        description="Of the probe: `s_per_trial`, `job_s` for the whole job, `finish_s` kept of a budget of time, "
        "`memory_bytes`, `disk_bytes`, device; with several sources also `ranking`, how well their features tell the "
        "classes apart before any training, best first, `ranks_first` and `screening`, what followed from it; `meta`, "
        "the dataset in the numbers by which later jobs find this one; `first_recipes`, what is tried first and why."
    )
    stopped_by: str | None = Field(
        description="The part of the budget that ended the search (`trials`, `time`, `device_time`, `target`, "
        "`patience`), `user`, or `failures`."
    )
    error: dict[str, Any] | None
    result: JobResult | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
