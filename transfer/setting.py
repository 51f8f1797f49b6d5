"""The setting of a trial: what its order resolves to on this machine, the same for all of its folds."""

import importlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from domain.catalogue import BackboneFacts
from domain.errors import Invalid
from domain.heads import in_closed_form, n_frozen
from domain.lot import LotOrder, TeacherFiles, TrialOrder
from domain.recipe import Recipe
from intake.packs import Pack, open_pack
from models.build import build, member
from models.ensemble import Ensemble
from models.facts import facts_of
from models.network import Network, new_head
from models.weights import Start, load_start
from transfer import compiling, pace
from transfer.checkpoint import open_checkpoint
from transfer.compiling import Mode
from transfer.memory import is_exhausted
from transfer.pace import (
    N_ITEMS,
    Keeping,
    Layout,
    Page,
    Precision,
    faster,
    layout,
    machine_name,
    measured,
    measured_layouts,
    remembered,
)
from transfer.parts import BoundPart, bind_all
from transfer.source_data import SourceData
from transfer.views import Items
from transfer.warm import Shelf, file_key

Net = TypeVar("Net", Network, Ensemble, Network | Ensemble)
T = TypeVar("T")
TRAIN, VAL, TEST = 0, 1, 2
FRACTION = 4000  # place of the seed that draws a part of the training items

PACKS: Shelf[Pack] = Shelf(8)
PROBLEMS: Shelf[Any] = Shelf(4)
STARTS: Shelf[Start] = Shelf(4)
NETWORKS: Shelf[Network] = Shelf(4)  # at rest, borrowed and given back
ONLOOKERS: Shelf[Network | Ensemble] = Shelf(6)  # sources and teachers: only ever looked at


class Halted(Exception):
    """The trial was asked to pause or to stop."""

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        self.answer = answer


class Found(NamedTuple):
    """What was found out about how a trial is best trained: so it stays, wherever it goes on."""

    precision: Precision | None = None
    mode: Mode | None = None
    channels_last: bool | None = None
    keeping: Mapping[int, Keeping] = MappingProxyType({})  # by the number of frozen stages


class Setting:
    """One trial on this machine. `found` is what is known of it already."""

    def __init__(
        self, order: LotOrder, trial: TrialOrder, stopped: Callable[[str], str], found: Found | None = None
    ) -> None:
        found = found or Found()
        self.order = order
        self.trial = trial
        self.recipe: Recipe = trial.recipe
        self.stopped: Callable[[], str] = lambda: stopped(trial.trial_id)
        self.device = torch.device(order.device)
        self.task: Any = importlib.import_module(f"transfer.tasks.{self.recipe.task}")
        self.parts: list[BoundPart] = bind_all(self.recipe)
        self.n_classes = len(order.classes)
        # Layout pays for convolutions (1.6 times on depthwise ones), not for token networks; a clock may know better.
        self.channels_last = "conv" in _known(self.recipe.backbone).provides
        self.preprocessing = _known(self.recipe.backbone).preprocessing
        self._source_file = None if trial.source.weights is None else file_key(trial.source.weights)
        if found.channels_last is not None:
            self.channels_last = found.channels_last
        elif self.channels_last and self._paces is not None:
            self.channels_last = self._layout() == "channels_last"
        self.pack, self.pack_key, self.problem = self._open(Path(trial.pack))
        self.precision: Precision = found.precision or self._precision()
        if found.mode is not None:
            self.mode = found.mode
        self._keeping = dict(found.keeping)

    @property
    def found(self) -> Found:
        return Found(self.precision, self.mode, self.channels_last, dict(self._keeping))

    def keeping(self, depth: int, measure: Callable[[], Keeping]) -> Keeping | None:
        """What computing and reading take after `depth` stages; None where nothing is to be timed."""
        if depth not in self._keeping and self._paces is not None:
            treated = {"precision": self.precision, "augmented": int(self.recipe.data.augmentation > 0)}
            facts = {**self._facts, **treated, "n_frozen": depth}
            self._keeping[depth] = pace.keeping(facts, self._paces, measure)
        return self._keeping.get(depth)

    def _layout(self) -> Layout:
        ordered = self.order.precision
        halves = ordered == "bfloat16" or (ordered == "auto" and self.device.type != "cpu")

        def measure() -> dict[Layout, float]:
            self.pack, self.pack_key, self.problem = self._open(Path(self.trial.pack))  # channels last so far
            frozen = self._n_frozen
            return self._timed(lambda net, x, y: measured_layouts(net, x, y, frozen, halves=halves), self._n_timed)

        return layout({**self._facts, "bfloat16": halves, "n_frozen": self._n_frozen}, self._paces, measure)

    def _precision(self) -> Precision:
        if self.order.precision != "auto":
            return self.order.precision
        frozen = self._n_frozen
        if self._computed_once:
            return "float32"
        facts = {**self._facts, "n_frozen": frozen}
        return faster(
            facts, self._paces, lambda: self._timed(lambda net, x, y: measured(net, x, y, frozen), self._n_timed)
        )

    @cached_property
    def mode(self) -> Mode:
        """How stages run in training; it may have to be measured. What is built for one trial alone would be compiled
        for it alone."""
        if self.order.compiling != "auto":
            return self.order.compiling
        alone = self.scratch or any(part.says("rebuild") for part in self.parts)
        looked_into = self.conv_taps or any(part.flag("INPUT_GRADIENT") for part in self.parts)
        if self.device.type != "cuda" or self._computed_once or alone or looked_into:
            return "eager"
        frozen, size = self._n_frozen, self.recipe.data.batch_size
        still = self.recipe.batch_norm != "train"
        facts = {
            **self._facts, "n_frozen": frozen, "batch_size": size, "compiled_for": self.precision,
            "batch_norm": self.recipe.batch_norm,
        }  # fmt: skip

        def found_of(modes: tuple[Mode, ...]) -> Page:
            def measure() -> Page:
                return self._timed(
                    lambda net, x, y: compiling.measured(
                        net, x, y, frozen, self.autocast, still_norms=still, modes=modes
                    ),
                    size,
                )

            named = {**facts, "modes": " ".join(modes)}
            return remembered(named, self._paces, measure, is_whole=compiling.is_whole)

        try:
            eager = found_of(("eager",))["seconds"]["eager"]
            if compiling.hopeless(eager, self.recipe.steps):
                return "eager"
            return compiling.chosen(found_of(get_args(Mode)), self.recipe.steps)
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
        compiling.forget()  # half a batch is trained eagerly, if it comes to that
        return "eager"

    @property
    def _paces(self) -> Path | None:
        return None if self.order.paces is None else Path(self.order.paces)

    @property
    def _n_frozen(self) -> int:
        return n_frozen(self.recipe, len(_known(self.recipe.backbone).stages))

    @property
    def _n_timed(self) -> int:
        """Items of a step that is timed: batch norm needs two."""
        return max(2, min(N_ITEMS, self.recipe.data.batch_size))

    @property
    def _computed_once(self) -> bool:
        """Whether all that trains is a head that reads kept looks."""
        everything = self._n_frozen == len(_known(self.recipe.backbone).stages)
        return everything and (in_closed_form(self.recipe) or self.task.n_looks(self.recipe.data) > 0)

    @property
    def _facts(self) -> dict[str, str | int]:
        """What the pace of a training step depends on."""
        return {
            "backbone": self.recipe.backbone, "resolution": self.recipe.data.resolution,
            "machine": machine_name(self.device), "n_threads": self.order.n_threads,
            "channels_last": self.channels_last,
        }  # fmt: skip

    def _timed(self, measure: Callable[[Network, Tensor, Tensor], T], n_items: int) -> T:
        """What `measure` finds of the network at its start, and of a batch."""
        net, _ = self.borrow(0)
        items = np.resize(np.arange(len(self.pack.labels)), n_items)
        found = measure(net, self.problem.evaluation_inputs(items), self.problem.targets(items))
        self.give_back(net)
        return found

    def _open(self, folder: Path) -> tuple[Pack, tuple[object, ...], Any]:
        """A pack, what tells it from others, and it seen as a learning problem."""
        file = file_key(folder / "pack.json")
        pack = PACKS.get(file, lambda: open_pack(folder))
        key = (file, self.preprocessing, str(self.device), self.channels_last)

        def make() -> Any:
            return self.task.Problem(pack, self.preprocessing, device=self.device, channels_last=self.channels_last)

        return pack, key, PROBLEMS.get((self.recipe.task, key), make)

    @cached_property
    def source_data(self) -> SourceData | None:
        """The source dataset, where the order names one."""
        if self.trial.source_pack is None:
            return None
        pack, _, problem = self._open(Path(self.trial.source_pack))
        return SourceData(pack, problem)

    @property
    def conv_taps(self) -> bool:
        """Whether a part looks at the last convolutions of the stages."""
        return any(part.flag("CONV_TAPS") for part in self.parts)

    @property
    def scratch(self) -> bool:
        return self.trial.source.weights is None

    @property
    def n_fits(self) -> int:
        """Fits of the whole trial: the folds and the closing one, or one alone."""
        return 1 if self.order.n_folds == 1 else self.order.n_folds + 1

    def items(self, fold: int) -> tuple[Items, Items]:
        """What a fit trains on and is ranked on; the closing fit (fold = n_folds) is ranked on nothing."""
        split = np.asarray(self.pack.split)
        if self.order.n_folds == 1:
            return self._part_of(np.flatnonzero(split == TRAIN), fold), np.flatnonzero(split == VAL)
        both = np.flatnonzero(split != TEST)
        groups = np.asarray(self.pack.fold)[both] % self.order.n_folds
        train, val = both[groups != fold], both[groups == fold]
        if fold < self.order.n_folds and not (len(train) and len(val)):
            raise Invalid(
                "too_few_items_for_folds", f"{len(both)} different items of train + val cannot fill "
                f"{self.order.n_folds} folds; ask for fewer, or upload more", n_items=len(both),
            )  # fmt: skip
        return self._part_of(train, fold), val

    def _part_of(self, train: Items, fold: int) -> Items:
        """The recipe's fraction of the items of each class, rounded up, drawn by the trial's seed; in their order."""
        fraction = self.recipe.data.fraction
        if fraction == 1:
            return train
        rng = np.random.default_rng(self.seed(fold, FRACTION))
        labels = self.problem.labels[train]
        parts = [train[labels == label] for label in np.unique(labels)]
        drawn = [rng.permutation(part)[: math.ceil(fraction * len(part) - 1e-9)] for part in parts]
        return np.sort(np.concatenate(drawn))

    def ask_midway(self) -> None:
        """Inside of what cannot be taken up again halfway: a stop ends it, a pause waits until it is done."""
        if self.stopped() == "stop":
            raise Halted("stop")

    def seed(self, *place: int) -> int:
        """A seed for one place of the trial; places that differ have unrelated seeds."""
        return seed_of(self.recipe.seed, *place)

    def autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    # --- networks

    @property
    def start_key(self) -> tuple[object, ...] | None:
        """Tells the start from others, and how it lies in memory; None from scratch."""
        if self._source_file is None:
            return None
        return (self._source_file, self.recipe.backbone, str(self.device), self.channels_last)

    @property
    def _network_key(self) -> tuple[object, ...]:
        return (self.recipe.backbone, self.n_classes, self.recipe.head.kind, str(self.device), self.channels_last)

    def borrow(self, seed: int) -> tuple[Network, Start]:
        """A network at the trial's start with a fresh head, and that start: clones nobody writes to."""
        kind = self.recipe.head.kind
        if self.scratch:
            fresh = build(self.recipe.backbone, n_classes=self.n_classes, head=kind, seed=seed)
            return self.place(fresh), Start({}, {}, None)
        net = NETWORKS.take(self._network_key)
        if net is None:
            net = self.place(build(self.recipe.backbone, n_classes=self.n_classes, head=kind, seed=seed))
        start = STARTS.get(self.start_key, lambda: self._read_start(net))
        for weight in net.parameters():
            weight.requires_grad_(True)
        state = net.state_dict()
        for name, tensor in {**start.weights, **start.buffers}.items():
            state[name].copy_(tensor)
        for name, tensor in state.items():
            if name.endswith("num_batches_tracked") and name not in start.buffers:
                tensor.zero_()
        for name, tensor in new_head(net.feature_dim, self.n_classes, kind, seed=seed).state_dict().items():
            state[f"head.{name}"].copy_(tensor)
        return net, start

    def give_back(self, net: Network) -> None:
        """The network is at rest; its weights mean nothing any more."""
        if not self.scratch and not any(part.says("rebuild") for part in self.parts):
            NETWORKS.put(self._network_key, net)

    def _read_start(self, net: Network) -> Start:
        start = load_start(net, Path(str(self.trial.source.weights)))
        own = net.state_dict()

        def like(name: str, tensor: Tensor) -> Tensor:  # in the memory layout of the network's own
            return torch.empty_like(own[name]).copy_(tensor)

        return Start(
            weights={n: like(n, t) for n, t in start.weights.items()},
            buffers={n: like(n, t) for n, t in start.buffers.items()},
            head=start.head,
        )

    def place(self, net: Net) -> Net:
        """The network on the device, in the memory layout that suits it."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return net.to(device=self.device).to(memory_format=memory_format)

    @cached_property
    def source(self) -> Network:
        """The source as loaded, its own head on top where it has one."""

        def make() -> Network:
            source = self.trial.source
            net = build(self.recipe.backbone, n_classes=max(1, source.n_classes), seed=0)
            start = load_start(net, Path(str(source.weights)))
            if start.head is not None and set(start.head) == set(net.head.state_dict()):
                net.head.load_state_dict(start.head)
            return onlooker(self.place(net))

        found = ONLOOKERS.get(("source", self.start_key, self.trial.source.n_classes), make)
        assert isinstance(found, Network)
        return found

    @cached_property
    def teachers(self) -> tuple[Network | Ensemble, ...]:
        """The networks that the order names as teachers, their heads included."""
        return tuple(self._teacher(files) for files in self.trial.teachers)

    def _teacher(self, files: TeacherFiles) -> Network | Ensemble:
        def make() -> Network | Ensemble:
            return onlooker(self.place(open_checkpoint(files.recipe, Path(files.weights), self.n_classes)))

        file, described = file_key(files.weights), files.recipe.model_dump_json()
        return ONLOOKERS.get(("teacher", file, described, self.n_classes, str(self.device), self.channels_last), make)


def seed_of(seed: int, *place: int) -> int:
    """The seed of one place of a trial of this seed."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0])


def onlooker(net: Net) -> Net:
    """For good in eval mode and without gradients: no module holds it, so no `train()` reaches it."""
    for weight in net.parameters():
        weight.requires_grad_(False)
    return net.eval()


@cache
def _known(backbone: str) -> BackboneFacts:
    """Finding them takes a tenth of a second, and every trial asks."""
    return facts_of(member(backbone))
