"""A lot: one or more trials trained together by one process under one lease; the order that a trial process receives.

Everything here is plain JSON with local paths: the trial process has no database, no broker and no credentials.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.dataset import Statistics
from domain.job import Budget, JobResult, Objective
from domain.recipe import Recipe


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFiles(Frozen):
    """Where the source's weights lie on this machine; None trains from scratch."""

    weights: str | None
    n_classes: int = 0  # width of the source's head, 0 if it has none


class TeacherFiles(Frozen):
    """A finished trial that teaches: its checkpoint on this machine, and the recipe that says what network it is."""

    weights: str
    recipe: Recipe


class TrialOrder(Frozen):
    trial_id: str
    number: int
    recipe: Recipe
    source: SourceFiles
    teachers: tuple[TeacherFiles, ...] = ()  # several teach as one: their probabilities are averaged
    pack: str  # folder of the packed dataset at this recipe's resolution
    source_pack: str | None = None  # folder of the packed source dataset, where a part of the recipe wants it
    resume: str | None = None  # folder of a resume point of this trial


class LotOrder(Frozen):
    schema_version: Literal[1] = 1
    lot_id: str
    fence: int
    trials: tuple[TrialOrder, ...]
    objective: Objective
    n_folds: int
    classes: tuple[str, ...]
    scratch: str  # folder for the files of this lot; emptied by the parent
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    n_threads: int = 1


class FinishCandidate(Frozen):
    """A finished trial whose network is evaluated on test: the winner, or an anchor."""

    trial_id: str
    number: int
    anchor: str | None = None  # name of the fixed recipe, None for a searched one
    recipe: Recipe
    weights: str  # safetensors
    predictions: str | None = None  # npz of logits and targets on val, folds pooled; the winner's calibrate it
    pack: str  # folder of the packed dataset at this recipe's resolution
    value: float  # the objective on val
    remarks: tuple[str, ...] = ()  # where its training deviates from its methods as published


class DataFacts(Frozen):
    """What the account says of the dataset."""

    dataset_id: str
    name: str
    content_hash: str
    statistics: Statistics
    findings: dict[str, int] = Field(default_factory=dict)  # code -> how often
    n_findings: int = 0


class SearchFacts(Frozen):
    """What the account says of the search."""

    n_trials: int
    by_state: dict[str, int] = Field(default_factory=dict)
    budget: Budget
    sampler: str
    pruner: str
    seed: int
    n_folds: int = 1
    sources: tuple[str, ...] = ()
    cost_s: float = 0.0
    elapsed_s: float = 0.0
    stopped_by: str | None = None

    def n_searched(self, n_fixed: int) -> int:
        """Trials beyond the `n_fixed` anchors that came far enough to be ranked."""
        return max(0, self.by_state.get("COMPLETE", 0) + self.by_state.get("PRUNED", 0) - n_fixed)


class FinishOrder(Frozen):
    """Everything needed to evaluate, explain and export a job's best trial, with local paths."""

    schema_version: Literal[1] = 1
    job_id: str
    job_name: str
    task: str
    objective: Objective
    classes: tuple[str, ...]
    winner: FinishCandidate
    anchors: tuple[FinishCandidate, ...] = ()  # the winner stands here too if it is one
    data: DataFacts
    search: SearchFacts
    licence: str = "unknown"  # of the winner's source weights
    licence_text: str | None = None
    n_test_looks: int = 1  # how often this test split has been looked at, this job included
    scratch: str  # folder for the bundle; emptied by the parent
    device: str = "cpu"
    n_threads: int = 1


class FinishOutcome(Frozen):
    result: JobResult
    bundle: str  # local path of the zip
    tests: dict[str, dict[str, float]]  # trial id -> metrics on test
