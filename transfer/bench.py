"""The bench of one fit: its network, start, items and seed, and what has happened on it so far.

`prepare` gets to work with it, and so does the loop of every phase.
"""

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from domain.lot import TeacherFiles
from domain.recipe import Recipe
from models.build import member
from models.ensemble import Ensemble, mean_logits
from models.facts import preprocessing_of
from models.network import HEAD, Network, Seen
from models.weights import Start
from transfer.phase import Outcome, Phase, Plan, Rebuilt, Site, covers
from transfer.setting import Halted, Setting, onlooker
from transfer.source_data import SourceData
from transfer.views import Items
from transfer.warm import Shelf

Tensors = dict[str, Tensor]

PREPARED: Shelf[Tensors] = Shelf(2 << 30, lambda found: sum(t.numel() * t.element_size() for t in found.values()))


class Drawn(NamedTuple):
    """The items of an epoch, in their order, and a row of the source dataset beside each, where a part wants that."""

    items: Items
    source: Items | None = None


class Pools(NamedTuple):
    """What `draw` chooses from, and what it may look at."""

    train: Items
    labels: NDArray[np.int64]  # of train
    prepared: Mapping[str, Tensor]
    phase: int
    n_source: int  # items of the source dataset that may be drawn, 0 without one
    predict: Callable[[], NDArray[np.float32]]  # logits (n, C) of the network as it is on train, evaluation pixels
    state: Tensors  # what `draw` remembers from epoch to epoch of its phase; kept in resume points


class Bench:
    """Fit number `fold` of a trial.

    net         at the start, then wherever the phases took it
    start       w0 by name, for the weights that came from the source and were not drawn anew
    new         the parts of the net that have no start: the head, and what surgery touched
    frozen      the weights that surgery lets no phase train
    prepared    what `prepare` returned
    outcomes    of the phases that are over
    remarks     sentences for the report: where the trial departs from the letter of a method
    """

    def __init__(self, setting: Setting, fold: int) -> None:
        self.setting, self.fold = setting, fold
        self.parts = setting.parts
        self.train, self.val = setting.items(fold)
        begun, source = self._begin()
        self.net: Network = begun.net
        self.new, self.train_only, self.frozen = begun.new, begun.train_only, begun.frozen
        self.rates, self.whole = begun.rates, begun.whole
        self.start = {n: t for n, t in source.weights.items() if not covers(self.new, n)}
        self.source_head: Mapping[str, Tensor] | None = source.head
        self.prepared: Tensors = {}
        self.outcomes: list[Outcome] = []
        self.remarks: list[str] = []
        self.previous: Network | None = None  # the teacher of a phase that learns from the one before
        self.n_beginnings = 0  # how often a phase began again from the start
        self.borrowed_s = 0.0  # of other trials' time that belongs to this one; below 0: of its time, to others
        self.n_splits = 1  # parts that a batch is taken in, where memory is short
        self._worked_on: set[str] = set()
        self.net.eval()
        for part in self.parts:
            if part.says("prepare"):
                self.prepared |= part.call("prepare", self)

    def _begin(self, beginning: int = 0) -> tuple[Rebuilt, Start]:
        """The network as this fit begins with it, the same every time but for the head's seed."""
        net, source = self.setting.borrow(self.setting.seed(self.fold, *([2000 + beginning] if beginning else [])))
        all_new: tuple[str, ...] = (HEAD, *(net.stage_names if self.setting.scratch else ()))
        so_far = Rebuilt(net, all_new)
        for place, part in enumerate(self.parts):
            if part.says("rebuild"):
                rebuilt = part.call("rebuild", so_far.net.cpu(), self._site(1000 + place, source))
                so_far = Rebuilt(
                    self.setting.place(rebuilt.net),
                    (*so_far.new, *(name for name in (*rebuilt.new, *rebuilt.train_only) if name not in so_far.new)),
                    (*so_far.train_only, *rebuilt.train_only), (*so_far.frozen, *rebuilt.frozen),
                    {**so_far.rates, **rebuilt.rates}, so_far.whole or rebuilt.whole,
                )  # fmt: skip
        return so_far, source

    def _site(self, place: int, source: Start) -> Site:
        data, teachers = self.setting.source_data, self.setting.teachers
        first = teachers[0] if teachers else None
        return Site(
            rng=torch.Generator().manual_seed(self.setting.seed(self.fold, place) & (2**63 - 1)),
            n_classes=self.setting.n_classes, source_head=source.head,
            n_source_classes=0 if data is None else data.n_classes,
            teacher=first.members[0] if isinstance(first, Ensemble) else first,  # type: ignore[arg-type]
        )  # fmt: skip

    def begin_again(self) -> None:
        """Put the network back to where this fit began, under a head of another seed."""
        self.n_beginnings += 1
        begun, _ = self._begin(self.n_beginnings)
        state = begun.net.state_dict()
        for name, tensor in self.net.state_dict().items():
            tensor.copy_(state[name])
        self.setting.give_back(begun.net)

    @property
    def recipe(self) -> Recipe:
        return self.setting.recipe

    @property
    def source_data(self) -> SourceData | None:
        return self.setting.source_data

    @property
    def train_labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.setting.problem.labels[self.train]
        return labels

    @property
    def val_labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.setting.problem.labels[self.val]
        return labels

    @property
    def plan(self) -> Plan:
        """What a schedule may know."""
        return Plan(
            stages=self.net.stage_names, new=tuple(n for n in self.new if n != HEAD),
            steps=self.recipe.steps, n_train=len(self.train),
            children=tuple(_children(self.net, stage) for stage in self.net.stage_names),
            batch_size=self.recipe.data.batch_size, lr_head=self.recipe.optimizer.lr_head,
        )  # fmt: skip

    def batches(self, items: Items, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Evaluation inputs and targets of `items`, in their order."""
        for at in range(0, len(items), size):
            chunk = items[at : at + size]
            yield self.setting.problem.evaluation_inputs(chunk), self.setting.problem.targets(chunk)

    def ask(self) -> None:
        """Go on, unless the trial is to pause or to stop."""
        if (answer := self.setting.stopped()) != "go":
            raise Halted(answer)

    # --- what `prepare` needs

    def seed(self, n: int) -> int:
        """A seed for what is prepared: the same whatever the recipe's, for trials share what was prepared."""
        return int(np.random.SeedSequence([self.fold, n, 77]).generate_state(1, np.uint64)[0] >> 1)

    def once(self, key: tuple[Hashable, ...], make: Callable[[], Tensors], *, of_net: bool = False) -> Tensors:
        """What `make` returns, worked out once for all trials of this source, pack and fold.

        `of_net` says that it looks at `net`, which surgery may have changed, and not at the source as loaded alone.
        """
        setting = self.setting
        if setting.start_key is None or (of_net and any(part.slot == "surgery" for part in self.parts)):
            return make()
        fraction = self.recipe.data.fraction
        part = None if fraction == 1 else (fraction, self.recipe.seed)  # drawn by the trial's seed
        items = (setting.pack_key, setting.order.n_folds, self.fold, part)
        return PREPARED.get((setting.start_key, items, setting.precision, key), make)

    def remark(self, sentence: str) -> None:
        """Say in the report where the trial departs from the letter of a method."""
        if sentence not in self.remarks:
            self.remarks.append(sentence)

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

    def look_source(self, inputs: Tensor) -> Seen:
        """What the source as loaded makes of a batch."""
        return self.look(self.setting.source, inputs)

    def look_teacher(self, inputs: Tensor) -> Seen:
        """What the teacher makes of the student's very views; several teachers answer as one.

        What lies inside a network is the first teacher's.
        """
        if self.previous is not None:
            return self.look(self.previous, inputs)
        pairs = zip(self.setting.teachers, self.setting.trial.teachers, strict=True)
        first, *others = [self.look(net, self._for_teacher(inputs, files)) for net, files in pairs]
        return first._replace(logits=mean_logits([first.logits, *(other.logits for other in others)]))

    def _for_teacher(self, inputs: Tensor, files: TeacherFiles) -> Tensor:
        """The same views at the teacher's resolution and normalisation."""
        own, its = self.setting.preprocessing, preprocessing_of(member(files.recipe.backbone))
        if (own.mean, own.std) != (its.mean, its.std):
            # (x std + mean - mean') / std', one factor and one summand per channel
            a, b, c, d = (torch.tensor(v, device=inputs.device) for v in (own.mean, own.std, its.mean, its.std))
            inputs = inputs * (b / d).view(1, 3, 1, 1) + ((a - c) / d).view(1, 3, 1, 1)
        side = files.recipe.data.resolution
        if side == inputs.shape[-1]:
            return inputs
        smaller = side < inputs.shape[-1]
        return functional.interpolate(inputs, (side, side), mode="bilinear", antialias=smaller)

    def look(self, net: Network | Ensemble, inputs: Tensor) -> Seen:
        """What a network makes of a batch, its logits in float32."""
        with self.setting.autocast():
            seen = net.look(inputs, convs=self.setting.conv_taps)
        return seen._replace(logits=seen.logits.float())


def _children(net: Network, stage: str) -> tuple[str, ...]:
    """The parts of a stage that hold weights; the stage itself where it holds some of its own."""
    module = net.get_submodule(stage)
    if next(module.parameters(recurse=False), None) is not None:
        return (stage,)
    found = [f"{stage}.{n}" for n, child in module.named_children() if next(child.parameters(), None) is not None]
    return tuple(found) or (stage,)
