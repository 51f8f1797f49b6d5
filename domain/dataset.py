"""A dataset as the rest of Graft sees it: classes, splits, statistics, and what was found wrong with its items."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Split(StrEnum):
    TRAIN = "train"
    VAL = "val"
    TEST = "test"


class Finding(Frozen):
    """One thing noticed about a dataset. `error` findings leave the item out; the dataset goes on without it."""

    code: str  # image_corrupt, image_too_many_pixels, near_duplicate, class_imbalance, …
    severity: Literal["info", "warning", "error"]
    detail: str
    path: str | None = None  # as the archive names it, control characters escaped
    row: int | None = None  # of a CSV


class Item(Frozen):
    """One labelled thing of a prepared dataset."""

    id: str  # sha256 of the file's bytes, hexadecimal
    path: str  # where it stood in the upload, for people
    member: str  # where it stands in the prepared archive
    label: int
    split: Split
    fold: int  # 0..N_FOLDS-1 within train + val, -1 in test; stratified, near-duplicates together
    width: int
    height: int


class Statistics(Frozen):
    n_items: int
    n_classes: int
    per_split: dict[str, int]
    per_class: dict[str, dict[str, int]]  # class name -> split -> count
    width_quantiles: tuple[int, int, int, int, int]  # min, 25 %, median, 75 %, max
    height_quantiles: tuple[int, int, int, int, int]
    n_near_duplicates: int = 0
    split_source: Literal["given", "made", "partly"] = "made"


class Manifest(Frozen):
    """What a prepared dataset consists of; stored beside its items as `manifest.json`."""

    schema_version: Literal[1] = 1
    task: str
    layout: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    statistics: Statistics
    findings: tuple[Finding, ...] = ()
    content_hash: str  # sha256 over (id, label, split) of every item, order-free
    n_findings: int = 0  # `findings` is cut at a limit; this is the full count
    facts: dict[str, Any] = Field(default_factory=dict)


N_FOLDS = 60  # one number per item holds a division into K folds for every K up to 5: number % K
