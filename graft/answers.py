"""What the service answers, as frozen dataclasses. A field unknown to this version is left out, never an error."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Generic, TypeVar

from graft.errors import GraftApiError

T = TypeVar("T")

FINISHED = frozenset({"COMPLETE", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing noticed about a dataset; an `error` leaves the item out."""

    code: str
    severity: str
    detail: str
    path: str | None = None
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    id: str
    name: str
    task: str
    state: str  # UPLOADING | CHECKING | READY | REJECTED | DELETED
    size_bytes: int | None = None
    sha256: str | None = None
    content_hash: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    statistics: dict[str, Any] | None = None
    findings: tuple[Finding, ...] = ()
    n_findings: int = 0
    n_test_looks: int = 0
    error: dict[str, Any] | None = None
    created_at: str | None = None


@dataclass(frozen=True, slots=True)
class Interval:
    value: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class AnchorResult:
    """A fixed recipe run first, on the same test items as the winner."""

    name: str
    trial_id: str
    number: int
    val: float
    test_accuracy: Interval
    lift: Interval  # winner minus this anchor, paired


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A trial that no other one beats in every objective."""

    trial_id: str
    number: int
    values: dict[str, float] = field(default_factory=dict)  # objective -> value
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Combined:
    """A soup or an ensemble of trials that could have been handed back, and whether it was."""

    kind: str  # soup | ensemble
    numbers: tuple[int, ...]  # of its trials
    val: float
    best_single: float  # on the same items
    taken: bool
    why: str


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A recipe that was trained with several seeds."""

    number: int  # of its first trial
    values: tuple[float, ...]  # the objective on val, one per seed
    mean: float


@dataclass(frozen=True, slots=True)
class JobResult:
    best_trial_id: str
    best_number: int
    val: float
    metrics: dict[str, float]
    test_accuracy: Interval
    n_test: int
    n_test_looks: int
    verdict: str
    selection_bias: float | None = None
    calibration_temperature: float = 1.0
    anchors: tuple[AnchorResult, ...] = ()
    summary: tuple[str, ...] = ()  # what was tried, chosen and why, in plain sentences
    importance: dict[str, float] = field(default_factory=dict)  # dimension -> its share in coming out on top
    combined: tuple[Combined, ...] = ()
    confirmed: tuple[Confirmed, ...] = ()
    front: tuple[FrontPoint, ...] = ()  # of several objectives, or of limits
    export: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    trials_done: int = 0
    trials_total: int | None = None
    by_state: dict[str, int] = field(default_factory=dict)
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Best:
    trial_id: str
    number: int
    value: float | None = None
    anchor: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    name: str
    dataset_id: str
    state: str  # WAITING | PROBING | RUNNING | PAUSED | FINISHING | COMPLETE | FAILED | CANCELLED
    spec: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    best: Best | None = None
    cost_s: float = 0.0
    elapsed_s: float | None = None
    left_s: float | None = None
    estimate: dict[str, Any] | None = None
    stopped_by: str | None = None
    error: Any = None
    result: JobResult | None = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


@dataclass(frozen=True, slots=True)
class Trial:
    id: str
    job_id: str
    number: int
    state: str  # WAITING | RUNNING | PAUSED | COMPLETE | PRUNED | FAILED | CANCELLED
    anchor: str | None = None
    origin: str | None = None  # cheap | promoted | repeat | warm_start; None: an anchor, or the sampler's own
    of: int | None = None  # the trial that it repeats or runs in full
    rung: float | None = None  # share of its budget at which it was paused for lagging behind
    value: float | None = None
    values: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] | None = None
    test: dict[str, Any] | None = None
    cost_s: float | None = None
    peak_bytes: int | None = None
    share: float | None = None
    has_checkpoint: bool = False
    teachers: tuple[str, ...] = ()  # the trials that taught it
    remarks: tuple[str, ...] = ()  # where it deviates from its methods as published
    error: Any = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """One line of a trial's learning curve."""

    fold: int
    phase: int
    step: int
    share: float
    value: float | None = None
    terms: dict[str, float] = field(default_factory=dict)
    cost_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    seq: int
    kind: str
    body: dict[str, Any] = field(default_factory=dict)
    at: str | None = None

    @property
    def ends_job(self) -> bool:
        return self.kind == "job.state" and self.body.get("state") in FINISHED


@dataclass(frozen=True, slots=True)
class Source:
    """Weights a job may start from; `ref` is what a job names."""

    ref: str
    kind: str = ""
    name: str = ""
    backbone: str = ""
    id: str | None = None
    n_classes: int | None = None
    classes: tuple[str, ...] = ()
    licence: str | None = None
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`key` is the secret; the service shows it once, when the key is made."""

    id: str
    name: str = ""
    prefix: str = ""
    key: str | None = field(default=None, repr=False)
    created_at: str | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: tuple[T, ...]
    next_cursor: str | None = None


_ONE: dict[type, dict[str, type]] = {
    Job: {"progress": Progress, "best": Best, "result": JobResult},
    JobResult: {"test_accuracy": Interval},
    AnchorResult: {"test_accuracy": Interval, "lift": Interval},
}
_MANY: dict[type, dict[str, type]] = {
    Dataset: {"findings": Finding},
    JobResult: {"anchors": AnchorResult, "front": FrontPoint, "combined": Combined, "confirmed": Confirmed},
}


def read(kind: type[T], data: Any) -> T:
    """A `kind` from decoded JSON. GraftApiError("unreadable_answer") where a needed field is missing."""
    if not isinstance(data, Mapping):
        raise _unreadable(kind, f"got {type(data).__name__}")
    if kind is Source and "ref" not in data and "id" in data:
        data = {**data, "ref": data["id"]}
    values: dict[str, Any] = {}
    for known in fields(kind):  # type: ignore[arg-type]
        if known.name not in data:
            if known.default is MISSING and known.default_factory is MISSING:
                raise _unreadable(kind, f"it lacks {known.name!r}")
            continue
        value = data[known.name]
        if value is not None and (one := _ONE.get(kind, {}).get(known.name)):
            value = read(one, value)
        elif many := _MANY.get(kind, {}).get(known.name):
            value = tuple(read(many, v) for v in value or ())
        elif isinstance(value, list):
            value = tuple(value)
        elif value is None and known.default_factory is not MISSING:
            continue  # null where a mapping or a nested answer has an empty default
        values[known.name] = value
    return kind(**values)


def read_page(kind: type[T], data: Any) -> Page[T]:
    """One page of a list."""
    if not isinstance(data, Mapping) or "items" not in data:
        raise _unreadable(Page, "it lacks 'items'")
    return Page(tuple(read(kind, item) for item in data["items"]), data.get("next_cursor"))


def _unreadable(kind: type, why: str) -> GraftApiError:
    detail = f"the answer is no {kind.__name__}: {why}; do client and service have the same version?"
    return GraftApiError("unreadable_answer", detail, 200)
