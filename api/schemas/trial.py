"""Trials over the wire."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.page import moment, moment_or_none
from domain.recipe import Recipe
from domain.states import TrialState
from domain.trial import Report
from store.tables import ReportRow, TrialRow

RECIPE = Recipe(task="classification", source="torchvision:resnet18", backbone="resnet18").model_dump(mode="json")


class Trial(BaseModel):
    """One recipe and how it went."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "tr_0193c1f2a4d10f2b3c4d5e6f7081", "job_id": "job_0193c1f2a4d10f2b3c4d5e6f7081", "number": 3,
                    "anchor": None, "origin": None, "of": None, "state": "COMPLETE", "rung": None, "value": 0.31,
                    "values": {"optimizer.lr_head": 0.01},
                    "recipe": RECIPE, "metrics": {"accuracy": 0.92, "log_loss": 0.31}, "test": None, "cost_s": 12.5,
                    "peak_bytes": 734003200, "share": 1.0, "has_checkpoint": True, "teachers": [],
                    "remarks": [], "error": None,
                    "created_at": "2026-11-21T08:00:00Z", "started_at": "2026-11-21T08:00:01Z",
                    "finished_at": "2026-11-21T08:00:14Z",
                }
            ]
        }
    )  # fmt: skip

    id: str
    job_id: str
    number: int
    anchor: str | None = Field(description="Name of the fixed recipe it is, if it is one.")
    origin: str | None = Field(
        description="`cheap`: tried at a lower fidelity first; `promoted`: such a one in full; `repeat`: with another "
        "seed; `warm_start`: from past jobs; null: an anchor, or the sampler's own."
    )
    of: int | None = Field(description="The number of the trial that it repeats or runs in full.")
    state: TrialState
    rung: float | None = Field(description="The share of its budget at which it was paused for lagging behind.")
    value: float | None = Field(description="The objective on `val`.")
    values: dict[str, Any] = Field(description="The searched values by path.")
    recipe: dict[str, Any] = Field(description="Everything needed to train it again.")
    metrics: dict[str, Any] | None = Field(description="On `val`, and the facts of the network that the job asked for.")
    test: dict[str, Any] | None = Field(description="On `test`: the winner and the anchors of a finished job.")
    cost_s: float
    peak_bytes: int
    share: float = Field(description="Part of its budget spent, 0 to 1.")
    has_checkpoint: bool
    teachers: list[str] = Field(description="The trials that taught it, of this job or another.")
    remarks: list[str] = Field(description="Where it deviates from its recipe's methods as published.")
    error: dict[str, Any] | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Curve(BaseModel):
    """Every report of a trial, in the order of training."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"items": [{"trial_id": "tr_0193c1f2a4d10f2b3c4d5e6f7081", "fold": 0, "phase": 0, "step": 40,
                            "share": 0.4, "value": 0.52, "terms": {"task": 0.61}, "cost_s": 3.2}]}
            ]
        }
    )  # fmt: skip

    items: list[Report]


def show_trial(row: TrialRow) -> Trial:
    return Trial(
        id=row.id, job_id=row.job_id, number=row.number, anchor=row.anchor,
        origin=row.attrs.get("origin"), of=row.attrs.get("of"), state=TrialState(row.state), rung=row.attrs.get("rung"),
        value=row.value, values=row.values, recipe=row.recipe, metrics=row.metrics, test=row.test, cost_s=row.cost_s,
        peak_bytes=row.peak_bytes, share=row.share, has_checkpoint=row.checkpoint_blob is not None,
        teachers=[teacher["trial_id"] for teacher in row.attrs.get("teachers", ())],
        remarks=list(row.attrs.get("remarks", ())), error=row.error,
        created_at=moment(row.created_at), started_at=moment_or_none(row.started_at),
        finished_at=moment_or_none(row.finished_at),
    )  # fmt: skip


def show_report(row: ReportRow) -> Report:
    return Report(
        trial_id=row.trial_id, fold=row.fold, phase=row.phase, step=row.step, share=row.share, value=row.value,
        terms={name: float(value) for name, value in (row.terms or {}).items() if value is not None},
        cost_s=row.cost_s,
    )  # fmt: skip
