"""What a trial tells while it runs, and what it leaves behind."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Report(Frozen):
    """One line of a trial's curve. `share` in (0, 1] is the part of the trial's whole budget spent so far, folds
    included: the one axis on which pruners compare trials. `value` is the objective on val; None where it was not
    measured (inside the closing fit on train + val, which has no val)."""

    trial_id: str
    fold: int
    phase: int
    step: int
    share: float
    value: float | None = None
    terms: dict[str, float] = Field(default_factory=dict)  # mean train losses by term, val metrics as "val/<name>"
    cost_s: float = 0.0  # seconds of training spent by this trial so far


class TrialOutcome(Frozen):
    """How a trial ended, told by the process that ran it."""

    trial_id: str
    state: str  # COMPLETE | FAILED | PRUNED | PAUSED | CANCELLED
    value: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)  # on val, folds pooled
    cost_s: float = 0.0
    peak_bytes: int = 0
    error_code: str | None = None  # diverged, out_of_memory, lost_worker, …
    error: str | None = None
    files: dict[str, str] = Field(default_factory=dict)  # "weights" -> local path, "val" -> predictions on val
    facts: dict[str, Any] = Field(default_factory=dict)
