"""Jobs over the wire: what is asked for, and how it stands."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from api.schemas.text import Name
from domain.job import Budget, JobResult
from domain.space import Space
from domain.states import JobState

DEFAULT_SOURCES = ("torchvision:mobilenet_v3_large", "torchvision:resnet18", "torchvision:resnet50")
Ref = Annotated[str, Field(min_length=1, max_length=120)]
Scalar = StrictBool | StrictInt | StrictFloat | Annotated[StrictStr, Field(max_length=120)]


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


Narrowing = Scalar | Annotated[list[Scalar], Field(max_length=200)] | Bounds


class JobCreate(BaseModel):
    """A request to search for the best way to transfer to a dataset. Only the dataset and a budget are needed."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"dataset_id": "ds_0193c1f2a4d10f2b3c4d5e6f7081", "budget": {"trials": 20, "wall_s": 3600}},
                {
                    "name": "flowers, small networks", "dataset_id": "ds_0193c1f2a4d10f2b3c4d5e6f7081",
                    "sources": ["torchvision:resnet18", "job_0193c1f2a4d10f2b3c4d5e6f7081"], "budget": {"trials": 30},
                    "space": {"head.kind": "linear", "regularizer": ["l2", "l2_sp"],
                              "optimizer.lr_head": {"low": 0.001, "high": 0.1}},
                    "objective": "log_loss", "sampler": "tpe", "pruner": "median", "seed": 7,
                },
            ]
        },
    )  # fmt: skip

    name: Name | None = None
    dataset_id: Ref
    sources: Annotated[list[Ref], Field(min_length=1, max_length=20)] | None = Field(
        default=None,
        description="torchvision:<backbone>, scratch:<backbone>, the id of a source, or of a COMPLETE job. "
        f"Default: {', '.join(DEFAULT_SOURCES)}.",
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
        default_factory=dict, description="Fix (a value) or narrow (a list of values, or low and high) any dimension."
    )
    budget: Budget
    objective: Literal["accuracy", "log_loss", "macro_f1", "balanced_accuracy"] | None = Field(
        default=None, description="What trials are ranked by, on `val`. Default: by the size of `val`."
    )
    n_folds: Annotated[int, Field(ge=1, le=5)] | None = Field(
        default=None, description="Default: by the size of `val`."
    )
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "halving", "none"] = "median"
    anchors: StrictBool = True
    parallel: Annotated[int, Field(ge=1, le=256)] | None = Field(
        default=None, description="Trials at a time. Default: as many as there are workers."
    )
    keep_top: Annotated[int, Field(ge=1, le=50)] = 3
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0


class Cancel(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"keep": "best"}, {"keep": "nothing"}]})

    keep: Literal["best", "nothing"] = Field(
        default="best", description="`best`: finish with the best trial so far; `nothing`: end at once."
    )


class BudgetMore(BaseModel):
    """A larger budget; what is left out stays."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, json_schema_extra={"examples": [{"trials": 50}, {"wall_s": 7200}]}
    )

    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    wall_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.trials is None and self.wall_s is None:
            raise ValueError("give trials, wall_s or both")
        return self


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
    sources: list[SourceInJob]
    teacher: str | None = Field(description="A job, `best`, `ensemble`, or a source.")
    source_dataset_id: str | None
    space: Space
    budget: Budget
    objective: str
    n_folds: int
    sampler: str
    pruner: str
    anchors: bool
    parallel: int | None
    keep_top: int
    seed: int


_SPEC: dict[str, Any] = {
    "task": "classification",
    "sources": [{"ref": "torchvision:resnet18", "backbone": "resnet18", "kind": "torchvision", "licence": "BSD"}],
    "teacher": None, "source_dataset_id": None, "space": {"dimensions": [], "fixed": {"batch_norm": "eval"}},
    "budget": {"trials": 20, "wall_s": None}, "objective": "log_loss", "n_folds": 3, "sampler": "tpe",
    "pruner": "median", "anchors": True, "parallel": None, "keep_top": 3, "seed": 0,
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
                    "estimate": {"s_per_trial": 12.0}, "stopped_by": None, "error": None, "result": None,
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
        description="Of the probe: seconds per trial, memory, device; with several sources also `ranking`, how well "
        "their features tell the classes apart before any training, best first, and `ranks_first`."
    )
    stopped_by: str | None
    error: dict[str, Any] | None
    result: JobResult | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
