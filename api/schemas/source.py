"""Sources over the wire: where weights can come from."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.page import moment
from domain.catalogue import BackboneFacts, WeightsFacts
from store.tables import SourceRow


class Source(BaseModel):
    """Weights a job may start from; `ref` is what a job names."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": None, "ref": "torchvision:resnet18", "kind": "torchvision", "name": "IMAGENET1K_V1",
                    "backbone": "resnet18", "n_classes": 1000, "classes": [], "licence": "BSD-3-Clause",
                    "accuracy": 69.758,
                    "size_bytes": None, "sha256": None, "created_at": None,
                }
            ]
        }
    )  # fmt: skip

    id: str | None = Field(description="Of a registered source; null for published weights and for scratch.")
    ref: str
    kind: Literal["scratch", "torchvision", "registered"]
    name: str
    backbone: str
    n_classes: int = Field(description="Width of the source's head; 0 if it has none.")
    classes: list[str]
    licence: str
    accuracy: float | None = Field(default=None, description="Top-1 on ImageNet, percent.")
    size_bytes: int | None = None
    sha256: str | None = None
    created_at: datetime | None = None


def show_source(row: SourceRow) -> Source:
    return Source(
        id=row.id, ref=row.id, kind="registered", name=row.name, backbone=row.backbone, n_classes=row.n_classes,
        classes=row.classes or [], licence=row.licence, size_bytes=row.size_bytes, sha256=row.sha256,
        created_at=moment(row.created_at),
    )  # fmt: skip


def show_published(backbone: BackboneFacts, weights: WeightsFacts) -> Source:
    return Source(
        id=None, ref=f"torchvision:{backbone.name}", kind="torchvision", name=weights.name, backbone=backbone.name,
        n_classes=weights.n_classes, classes=[], licence=weights.licence, accuracy=weights.accuracy,
    )  # fmt: skip


def show_scratch(backbone: BackboneFacts) -> Source:
    return Source(
        id=None, ref=f"scratch:{backbone.name}", kind="scratch", name="random weights", backbone=backbone.name,
        n_classes=0, classes=[], licence="none",
    )  # fmt: skip
