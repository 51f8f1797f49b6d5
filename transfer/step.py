"""What the losses of parts see: one step of training, every value worked out when it is first asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Forward = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]  # inputs -> logits, features by tap


class Weights(Mapping[str, Tensor]):
    """The trainable weights of a phase by name; those with a `start` are shared, the others new.

    `kernels` are the weights of convolutions and fully connected layers: what a penalty of scope "kernels" covers
    (Li et al. 2018 penalise those alone; biases, batch norm's affine pair and embeddings are left out).
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], *,
        buffers: Mapping[str, Tensor] | None = None, decoupled: bool = False,
    ) -> None:  # fmt: skip
        self.tensors = dict(tensors)
        self.start = {name: start[name] for name in self.tensors if name in start}
        self.buffers = dict(buffers or {})  # floating-point state that moves with the weights: running statistics
        self.decoupled = decoupled  # the optimizer rescales gradients: penalties act in after_step instead of loss
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
        self._seen: tuple[Tensor, Mapping[str, Tensor]] | None = None

    def _look(self) -> tuple[Tensor, Mapping[str, Tensor]]:
        if self._seen is None:
            with torch.set_grad_enabled(self._attached or self._inputs.requires_grad):
                self._seen = self._forward(self._inputs)
        return self._seen

    @property
    def logits(self) -> Tensor:  # (B, C), float32
        return self._look()[0]

    @property
    def features(self) -> Mapping[str, Tensor]:
        """Feature maps by tap."""
        return self._look()[1]

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
        prepared: Mapping[str, Tensor], student: View, source: Callable[[], View], teacher: Callable[[], View],
        task_loss: Callable[[Tensor, Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.inputs = inputs
        self.targets = targets  # (B,) class indices, or (B, C) probabilities after mixup
        self.weights = weights
        self.progress = progress  # of the phase, in [0, 1)
        self.prepared = prepared
        self.student = student
        self._seed = seed
        self._source = source
        self._teacher = teacher
        self._task_loss = task_loss

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
    tensors: dict[str, Tensor] = field(default_factory=dict)
    averaged: dict[str, Tensor] = field(default_factory=dict)
