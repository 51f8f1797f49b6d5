"""A lot: one or more trials trained together by one process under one lease; the order that a trial process receives.

Everything here is plain JSON with local paths: the trial process has no database, no broker and no credentials.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.dataset import Statistics
from domain.job import Budget, CombinedKind, Confirmed, FrontPoint, JobResult, Objective
from domain.recipe import Recipe

Precision = Literal["auto", "float32", "bfloat16"]  # auto: whichever a few timed steps find faster
Compiling = Literal["auto", "eager", "compiled", "graphs"]  # likewise, on accelerators; eager elsewhere


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
    measure: tuple[str, ...] = ()  # facts of the trained network to find out, by the names of objectives


class LotOrder(Frozen):
    schema_version: Literal[1] = 1
    lot_id: str
    fence: int
    trials: tuple[TrialOrder, ...]
    objective: Objective
    n_folds: int
    classes: tuple[str, ...]
    scratch: str  # folder for the files of this lot; emptied by the parent
    activations: str | None = None  # folder that the workers of this machine share, of this workspace alone
    cuts: tuple[int, ...] = ()  # after how many stages trials of the job may freeze their networks
    device: str = "cpu"
    precision: Precision = "float32"
    compiling: Compiling = "auto"
    paces: str | None = None  # folder of the machine, for what was found out about "auto"
    n_threads: int = 1
    prefetch: bool = False  # cut the next batch in a thread while one trains


class MemberFiles(Frozen):
    """A trial's network inside a combination."""

    number: int
    recipe: Recipe
    weights: str  # safetensors
    share: float


class FinishCandidate(Frozen):
    """A finished trial that can be handed back or is compared with: the winner, an anchor, another of the best.

    A combination is a candidate too: it stands for its best trial, whose id and recipe it bears.
    """

    trial_id: str
    number: int
    anchor: str | None = None  # name of the fixed recipe, None for a searched one
    recipe: Recipe
    weights: str  # safetensors
    predictions: str | None = None  # npz of logits and targets on val, folds pooled; the winner's calibrate it
    pack: str  # folder of the packed dataset at this recipe's resolution
    value: float  # the objective on val
    remarks: tuple[str, ...] = ()  # where its training deviates from its methods as published
    of: int | None = None  # a repeat: number of the trial whose recipe it has with another seed
    eligible: bool = True  # whether the job's limits let it win
    measured: dict[str, float] = Field(default_factory=dict)  # facts of the network, where the job asked for them
    combined: CombinedKind | None = None  # a soup's mean lies in `weights`; an ensemble is opened member by member
    members: tuple[MemberFiles, ...] = ()


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
    n_searched: int  # of the search's own recipes, those that came far enough to be ranked
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
    importance: dict[str, float] = Field(default_factory=dict)  # dimension -> share, largest first
    ranks_first: str | None = None  # the source that its features alone ranked first
    trained: tuple[str, ...] = ()  # the sources of COMPLETE trials
    limits: str = ""  # what the job's limits did to the choice


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
    others: tuple[FinishCandidate, ...] = ()  # the rest of the best trials, for combinations; repeats of the winner
    combining: tuple[CombinedKind, ...] = ()  # what combinations may be handed back
    n_members: int = 3  # at most
    confirmed: tuple[Confirmed, ...] = ()
    front: tuple[FrontPoint, ...] = ()  # of several objectives or of limits, nothing chosen yet
    data: DataFacts
    search: SearchFacts
    licences: dict[str, str] = Field(default_factory=dict)  # source -> licence of its weights, where known
    licence_text: str | None = None
    n_test_looks: int = 1  # how often this test split has been looked at, this job included
    scratch: str  # folder for the bundle; emptied by the parent
    device: str = "cpu"
    n_threads: int = 1


class FinishOutcome(Frozen):
    result: JobResult
    bundle: str  # local path of the zip
    tests: dict[str, dict[str, float]]  # trial id -> metrics on test
