"""Datasets over the wire."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.schemas.page import moment
from domain.dataset import Finding, Statistics
from domain.states import DatasetState
from store.tables import DatasetRow

MAX_FINDINGS = 100
Fraction = Annotated[float, Field(ge=0, le=1)]


class SplitFractions(BaseModel):
    """How to divide data that comes undivided."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    train: Fraction = 0.7
    val: Fraction = 0.15
    test: Fraction = 0.15

    @model_validator(mode="after")
    def check(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError("train, val and test must add up to 1")
        if not (self.train and self.val and self.test):
            raise ValueError("train, val and test must each be more than 0")
        return self


class DatasetOptions(BaseModel):
    """What may be said about the preparation of a dataset; everything has a default."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"n_labelled_per_class": 10, "seed": 0}]})

    split: SplitFractions | None = None
    n_train_per_class: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Cut `train` down to so many items of each class."
    )
    n_labelled_per_class: Annotated[int, Field(ge=2, le=1_000_000)] | None = Field(
        default=None, description="`train` and `val` together are so many items of each class; all else is `test`."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.n_train_per_class is not None and self.n_labelled_per_class is not None:
            raise ValueError("give n_train_per_class or n_labelled_per_class, not both")
        return self


class Dataset(BaseModel):
    """An uploaded, checked, immutable collection."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "ds_0193c1f2a4d10f2b3c4d5e6f7081", "name": "flowers", "task": "classification",
                    "state": "READY", "size_bytes": 20481024, "sha256": "9f2c" * 16, "content_hash": "07ab" * 16,
                    "options": {"seed": 0}, "classes": ["daisy", "tulip"],
                    "statistics": {
                        "n_items": 340, "n_classes": 2, "per_split": {"train": 238, "val": 51, "test": 51},
                        "per_class": {"daisy": {"train": 119, "val": 26, "test": 25},
                                      "tulip": {"train": 119, "val": 25, "test": 26}},
                        "width_quantiles": [240, 320, 500, 640, 1024], "height_quantiles": [240, 240, 375, 480, 768],
                        "n_near_duplicates": 3, "split_source": "made",
                    },
                    "findings": [{"code": "image_corrupt", "severity": "error", "detail": "does not decode",
                                  "path": "tulip/17.jpg", "row": None}],
                    "n_findings": 1, "error": None, "n_test_looks": 0, "created_at": "2026-11-21T08:00:00Z",
                }
            ]
        }
    )  # fmt: skip

    id: str
    name: str
    task: str
    state: DatasetState
    size_bytes: int | None = Field(description="Of the upload.")
    sha256: str | None = Field(description="Of the upload.")
    content_hash: str | None = Field(description="Of the items, their labels and their splits, whatever their order.")
    options: dict[str, Any]
    classes: list[str] | None
    statistics: Statistics | None
    findings: list[Finding] = Field(description=f"At most {MAX_FINDINGS}; the rest under /findings.")
    n_findings: int
    error: dict[str, Any] | None = Field(description="Why it was rejected: `code`, `detail` and facts.")
    n_test_looks: int = Field(description="How many finished jobs have looked at its test split.")
    created_at: datetime


def show_dataset(row: DatasetRow) -> Dataset:
    summary = row.summary or {}
    findings = row.findings or []
    return Dataset(
        id=row.id, name=row.name, task=row.task, state=DatasetState(row.state), size_bytes=row.size_bytes,
        sha256=row.sha256, content_hash=row.content_hash, options=row.options or {}, classes=summary.get("classes"),
        statistics=summary.get("statistics"), findings=findings[:MAX_FINDINGS],
        n_findings=max(int(summary.get("n_findings", 0)), len(findings)), error=row.error,
        n_test_looks=row.n_test_looks, created_at=moment(row.created_at),
    )  # fmt: skip
