"""What finished jobs leave for later ones: the dataset in a few numbers, and what each recipe was worth on it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from domain.space import Value


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Meta(Frozen):
    """The meta-features of a job: its training items, and what the best-ranked source already knows of them."""

    n_train: int
    n_classes: int
    per_class_mean: float  # training items per class
    per_class_min: int
    resolution: int
    source: str | None = None  # the best-ranked one; None if every source starts from scratch
    backbone: str | None = None
    probe_accuracy: float | None = None  # of a linear probe on that source's features, leave-one-out
    chance: float = 0.0  # accuracy of always saying the largest class
    scores: dict[str, float] = Field(default_factory=dict)  # transferability scores of that source
    similarity: float | None = None  # exp(-gamma EMD) to the source dataset, where the job names one
    distance: float | None = None  # the same EMD in units of how far the source's own classes lie apart

    @property
    def skill(self) -> float | None:
        """The probe's accuracy on a scale where guessing is 0 and no mistake is 1."""
        if self.probe_accuracy is None or self.chance >= 1:
            return None
        return max(0.0, (self.probe_accuracy - self.chance) / (1 - self.chance))


class PastTrial(Frozen):
    """A COMPLETE trial of a finished job."""

    number: int
    values: dict[str, Value]
    value: float  # the objective on val
    backbone: str
    anchor: str | None = None


class PastJob(Frozen):
    id: str
    meta: Meta
    direction: Literal["maximize", "minimize"]
