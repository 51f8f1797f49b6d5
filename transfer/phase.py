"""Phases: what a schedule yields and `fit` carries out, one optimizer, one learning-rate curve, one trainable set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from models.network import Network
from transfer.optimizers import Rate, cosine


@dataclass(frozen=True)
class Curve:
    """A weight that moves linearly from `begin` to `end` over its phase."""

    begin: float
    end: float

    def at(self, progress: float) -> float:
        return self.begin + (self.end - self.begin) * progress


@dataclass(frozen=True)
class OptimizerSpec:
    """What a named part of the net is trained with, where that differs from the recipe. `lr` is the peak rate."""

    lr: float | None = None
    momentum: float | None = None


@dataclass(frozen=True)
class Phase:
    """One stretch of training. Freezing, the mode of batch norm and the cacheable prefix follow from `trainable`.

    `terms` weighs the task loss ("task") and the losses of parts (by name or slot); empty: everything counts once,
    otherwise what is not named counts nothing. `share` is the part of the fit's steps, None takes what is left.
    "best" is the best evaluation on val of this fit since it last began from the start, whichever phase it fell into;
    what begins again from the start gets a head of a new seed. `keep` says with which weights the phase ends; those of
    a "member" join the ensemble that the fit then ends with, its probabilities averaged.
    `patience` ends the phase after so many evaluations on val in a row that were no better than the best.
    """

    trainable: tuple[str, ...]  # stages, "head", or any prefix of a weight's name
    begin: Literal["start", "previous", "best"] = "previous"
    terms: Mapping[str, float | Curve] = field(default_factory=dict)
    teacher: Literal["none", "given", "previous"] = "given"
    optimizer: Mapping[str, OptimizerSpec] = field(default_factory=dict)
    share: float | None = None
    patience: int | None = None
    solve: Literal["gradient", "closed_form"] = "gradient"
    keep: Literal["last", "best", "member"] = "best"
    rate: Rate = cosine  # factor of the peak learning rates over the steps of this phase
    mixup_alpha: float | None = None  # None: the recipe's

    def weight(self, term: str, progress: float, *aliases: str) -> float:
        """How much a term counts at `progress` in [0, 1] of this phase."""
        if not self.terms:
            return 1.0
        found = next((self.terms[name] for name in (term, *aliases) if name in self.terms), 0.0)
        return found.at(progress) if isinstance(found, Curve) else float(found)


@dataclass(frozen=True)
class Outcome:
    """How a phase ended: sent back into the generator of phases, recorded, and replayed on resume."""

    phase: int
    steps: int
    value: float | None = None  # objective on val; None in the closing fit, which has no val
    log_loss: float | None = None
    choice: int | None = None  # which strength a closed form took

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What a schedule may know before it plans."""

    stages: tuple[str, ...]  # of the backbone, input side first
    new: tuple[str, ...]  # stages whose weights were re-initialised or added; the head is always new
    steps: int
    n_train: int
    children: tuple[tuple[str, ...], ...] = ()  # per stage, the parts it is made of that hold weights: blocks, layers
    batch_size: int = 64
    lr_head: float = 1e-2

    @property
    def everything(self) -> tuple[str, ...]:
        return (*self.stages, "head", *(n for n in self.new if n not in self.stages))


class Site(NamedTuple):
    """What `rebuild` may look at. A finished network is rebuilt with `rng` and `n_classes` alone."""

    rng: torch.Generator
    n_classes: int
    source_head: Mapping[str, Tensor] | None = None  # of the source as loaded
    n_source_classes: int = 0  # of the source dataset, 0 without one
    teacher: Network | None = None


class Rebuilt(NamedTuple):
    """What `rebuild` returns: the changed network, and prefixes of names of its weights.

    Weights that came from the source keep their names: by these they are matched with their start.
    """

    net: Network
    new: tuple[str, ...] = ()  # have no start: added, or drawn anew
    train_only: tuple[str, ...] = ()  # are left out of the checkpoint; all that parts other than surgery may add
    frozen: tuple[str, ...] = ()  # are trained in no phase; batch norms among them only look at running statistics
    rates: Mapping[str, float] = {}
    whole: bool = False  # the network needs its raw input and cannot be cut between stages


def covers(prefixes: tuple[str, ...], name: str) -> bool:
    """Whether the weight `name` lies in one of the named parts of a network."""
    return any(name == p or name.startswith(p + ".") for p in prefixes)
