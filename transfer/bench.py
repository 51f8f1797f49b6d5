"""The bench of one fit: its network, start, items and seed, and what has happened on it so far.

`prepare` gets to work with it, and so does the loop of every phase.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from domain.recipe import Recipe
from models.build import member
from models.facts import preprocessing_of
from models.network import HEAD, Network
from models.weights import Start
from transfer.phase import Outcome, Phase, Rebuilt
from transfer.setting import Setting, onlooker
from transfer.views import Items


class Halted(Exception):
    """The trial was asked to pause or to stop."""

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        self.answer = answer


class Pools(NamedTuple):
    """What `draw` chooses from: the items of train, their labels, and what the parts prepared."""

    train: Items
    labels: NDArray[np.int64]
    prepared: Mapping[str, Tensor]


class Bench:
    """Fit number `fold` of a trial.

    net         at the start, then wherever the phases took it
    start       w0 by name, for the weights that came from the source and were not drawn anew
    new         the parts of the net that have no start: the head, and what surgery touched
    prepared    what `prepare` returned
    outcomes    of the phases that are over
    """

    def __init__(self, setting: Setting, fold: int) -> None:
        self.setting, self.fold = setting, fold
        self.parts = setting.parts
        self.train, self.val = setting.items(fold)
        begun, source = self._begin()
        self.net: Network = begun.net
        self.new, self.train_only = begun.new, begun.train_only
        self.start = {n: t for n, t in source.weights.items() if n.partition(".")[0] not in self.new}
        self.prepared: dict[str, Tensor] = {}
        self.outcomes: list[Outcome] = []
        self.previous: Network | None = None  # the teacher of a phase that learns from the one before
        self._worked_on: set[str] = set()
        self.net.eval()
        for part in self.parts:
            if part.says("prepare"):
                self.prepared |= part.call("prepare", self)

    def _begin(self) -> tuple[Rebuilt, Start]:
        """The network as this fit begins with it, the same every time."""
        net, source = self.setting.borrow(self.setting.seed(self.fold))
        new: tuple[str, ...] = (HEAD, *(net.stage_names if self.setting.scratch else ()))
        train_only: tuple[str, ...] = ()
        for place, part in enumerate(self.parts):
            if part.says("rebuild"):
                rng = torch.Generator().manual_seed(self.setting.seed(self.fold, 1000 + place) & (2**63 - 1))
                rebuilt = part.call("rebuild", net.cpu(), rng)
                net, new = self.setting.place(rebuilt.net), (*new, *rebuilt.new)
                train_only = (*train_only, *rebuilt.train_only)
        return Rebuilt(net, new, train_only), source

    def begin_again(self) -> None:
        """Put the network back to where this fit began."""
        begun, _ = self._begin()
        state = begun.net.state_dict()
        for name, tensor in self.net.state_dict().items():
            tensor.copy_(state[name])
        self.setting.give_back(begun.net)

    @property
    def recipe(self) -> Recipe:
        return self.setting.recipe

    @property
    def train_labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.setting.problem.labels[self.train]
        return labels

    @property
    def val_labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.setting.problem.labels[self.val]
        return labels

    @property
    def pools(self) -> Pools:
        return Pools(self.train, self.train_labels, self.prepared)

    def batches(self, items: Items, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation inputs and targets of `items`, in their order."""
        for at in range(0, len(items), size):
            chunk = items[at : at + size]
            yield self.setting.problem.evaluation_inputs(chunk), self.setting.problem.targets(chunk)

    def ask(self) -> None:
        """Go on, unless the trial is to pause or to stop."""
        if (answer := self.setting.stopped()) != "go":
            raise Halted(answer)

    # --- what earlier phases did

    def note(self, phase: Phase) -> None:
        """`phase` is over."""
        if phase.solve == "gradient":
            self._worked_on |= {name.partition(".")[0] for name in phase.trainable}

    def touched(self, depth: int) -> bool:
        """Whether an earlier phase trained any of the first `depth` stages."""
        return bool(self._worked_on.intersection(self.net.stage_names[:depth]))

    def keep_as_teacher(self) -> None:
        """What the network knows now is what the coming phase learns from."""
        self.previous = onlooker(copy.deepcopy(self.net))

    # --- onlookers

    def look_source(self, inputs: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Logits and features of the source as loaded."""
        return self._look(self.setting.source, inputs)

    def look_teacher(self, inputs: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The teacher sees the student's very views, at its own resolution and normalisation."""
        if self.previous is not None:
            return self._look(self.previous, inputs)
        teacher, files = self.setting.teacher, self.setting.trial.teacher
        own, its = self.setting.preprocessing, preprocessing_of(member(teacher.backbone))
        views = inputs
        if (own.mean, own.std) != (its.mean, its.std):
            # (x std + mean - mean') / std', one factor and one summand per channel
            a, b, c, d = (torch.tensor(v, device=inputs.device) for v in (own.mean, own.std, its.mean, its.std))
            views = views * (b / d).view(1, 3, 1, 1) + ((a - c) / d).view(1, 3, 1, 1)
        if files is not None and files.resolution != inputs.shape[-1]:
            size = (files.resolution, files.resolution)
            smaller = files.resolution < inputs.shape[-1]
            views = functional.interpolate(views, size, mode="bilinear", antialias=smaller)
        return self._look(teacher, views)

    def _look(self, net: Network, inputs: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        with self.setting.autocast():
            logits, taps = net.forward_with_taps(inputs)
        return logits.float(), taps
