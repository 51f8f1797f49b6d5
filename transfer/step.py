"""What the losses of parts see: one step of training, every value worked out when it is first asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from models.network import Network, Seen

Forward = Callable[[Tensor], Seen]


class Weights(Mapping[str, Tensor]):
    """The trainable weights of a phase by name; those with a `start` are shared, the others new.

    `kernels` are the weights of convolutions and fully connected layers: what a penalty of scope "kernels" covers
    (Li et al. 2018 penalise those alone; biases, batch norm's affine pair and embeddings are left out).
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], *,
        buffers: Mapping[str, Tensor] | None = None, decoupled: bool = False,
        prepared: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.tensors = dict(tensors)
        self.start = {name: start[name] for name in self.tensors if name in start}
        self.buffers = dict(buffers or {})  # floating-point state that moves with the weights: running statistics
        self.decoupled = decoupled  # the optimizer rescales gradients: penalties act in after_step instead of loss
        self.prepared = dict(prepared or {})  # what the parts prepared, for their after_step
        self.momentum: dict[str, float] = {}  # by weight, where the optimizer has any
        self._lists: dict[tuple[str, str], tuple[list[str], list[Tensor], list[Tensor]]] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def shared(self, scope: str) -> tuple[list[str], list[Tensor], list[Tensor]]:
        """Names, weights and their start, of the weights that came from the source."""
        return self._select("shared", scope)

    def new(self, scope: str) -> tuple[list[str], list[Tensor]]:
        """Names and weights that have no start: the head, and what surgery added or re-initialised."""
        names, weights, _ = self._select("new", scope)
        return names, weights

    def _select(self, kind: str, scope: str) -> tuple[list[str], list[Tensor], list[Tensor]]:
        found = self._lists.get((kind, scope))
        if found is None:
            names = [
                name for name, w in self.tensors.items()
                if (name in self.start) == (kind == "shared") and (scope == "all" or is_kernel(name, w))
            ]  # fmt: skip
            start = [self.start[n] for n in names] if kind == "shared" else []
            found = self._lists[(kind, scope)] = (names, [self.tensors[n] for n in names], start)
        return found


def is_kernel(name: str, weight: Tensor) -> bool:
    return name.endswith("weight") and weight.ndim >= 2


class View:
    """A network looking at the inputs of a step. The student's values carry gradients, those of onlookers do not."""

    def __init__(self, forward: Forward, inputs: Tensor, *, attached: bool) -> None:
        self._forward = forward
        self._inputs = inputs
        self._attached = attached

    @cached_property
    def _seen(self) -> Seen:
        with torch.set_grad_enabled(self._attached or self._inputs.requires_grad):
            return self._forward(self._inputs)

    @property
    def logits(self) -> Tensor:  # (B, C), float32
        return self._seen.logits

    @property
    def features(self) -> Mapping[str, Tensor]:
        """Feature maps (B, c, h, w) by stage."""
        return self._seen.features

    @property
    def pooled(self) -> Tensor:  # (B, D), the input of the head
        return self._seen.pooled

    @property
    def convs(self) -> Mapping[str, Tensor]:
        """Outputs (B, c, h, w) of the last convolution of each stage, before its batch norm.

        Only in a recipe with a part that says `CONV_TAPS = True`.
        """
        return self._seen.convs

    def input_gradient(self, scalar: Tensor) -> Tensor:
        """Gradient of the sum of `scalar` (B,) with respect to the inputs, shaped as they are.

        Only in a recipe with a part that says `INPUT_GRADIENT = True`: inputs record no gradients otherwise.
        """
        (gradient,) = torch.autograd.grad(scalar.sum(), self._inputs, create_graph=self._attached, retain_graph=True)
        return gradient


class Step:
    """One step of training. Inputs and targets are read after mixup."""

    def __init__(
        self, *, inputs: Tensor, targets: Tensor, weights: Weights, progress: float, seed: tuple[int, ...],
        prepared: Mapping[str, Tensor], net: Network, look: Callable[[Tensor], View], source: Callable[[], View],
        teacher: Callable[[], View], task_loss: Callable[[Tensor, Tensor], Tensor],
        source_batch: Callable[[], tuple[Tensor, Tensor]] | None = None, student: View | None = None,
    ) -> None:  # fmt: skip
        self.inputs = inputs
        self.targets = targets  # (B,) class indices, or (B, C) probabilities after mixup
        self.weights = weights
        self.progress = progress  # of the phase, in [0, 1)
        self.prepared = prepared
        self.net = net  # the student itself, for its named parts
        self.look = look  # the student looking at other inputs
        self.student = look(inputs) if student is None else student
        self._seed = seed
        self._source = source
        self._teacher = teacher
        self._task_loss = task_loss
        self._source_batch = source_batch

    @property
    def start(self) -> Mapping[str, Tensor]:
        return self.weights.start

    @cached_property
    def task_loss(self) -> Tensor:
        return self._task_loss(self.student.logits, self.targets)

    @cached_property
    def source(self) -> View:
        return self._source()

    @cached_property
    def teacher(self) -> View:
        return self._teacher()

    @property
    def hard_targets(self) -> Tensor:  # (B,)
        """The class of each item, the larger share of a mixture."""
        return self.targets if self.targets.ndim == 1 else self.targets.argmax(1)

    @cached_property
    def source_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and class indices of the items of the source dataset that `draw` has put beside these."""
        if self._source_batch is None:
            raise RuntimeError("no part of this recipe draws from the source dataset")
        return self._source_batch()

    @property
    def source_inputs(self) -> Tensor:
        return self.source_batch[0]

    @property
    def source_targets(self) -> Tensor:
        return self.source_batch[1]

    @cached_property
    def rng(self) -> np.random.Generator:
        """Random numbers of this step alone: the same after a resume."""
        return np.random.default_rng(self._seed)


@dataclass
class PartState:
    """What a part's `after_step` keeps between steps; saved in a resume point.

    `averaged` replaces the live weights of these names wherever the network is evaluated or saved.
    """

    n_steps: int = 0
    progress: float = 0.0  # of the phase, set before each step
    tensors: dict[str, Tensor] = field(default_factory=dict)
    averaged: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def swapped(live: Mapping[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Inside, live tensors hold what the average held and the other way round; nothing is copied."""

    def swap() -> None:
        for name in average:
            live[name].data, average[name] = average[name], live[name].data

    swap()
    try:
        yield
    finally:
        swap()
