"""Optimizers over named tensors: SGD and AdamW, a learning rate per stage, cosine decay after a linear warm-up.

Written out rather than taken from `torch.optim`: one multi-tensor call per operation and rate keeps a step on a small
network at half the cost, and the state is a flat dictionary of tensors that goes into a resume point as it is.
The trajectories are those of `torch.optim.SGD` and `torch.optim.AdamW` (weight_decay 0: penalties are parts).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rate = Callable[[int, int, float], float]  # step, n_steps, warmup_frac -> factor of the peak rate

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True)
class Group:
    """Weights that share a peak learning rate and a momentum."""

    names: tuple[str, ...]
    lr: float
    momentum: float = 0.9


def cosine(step: int, n_steps: int, warmup_frac: float) -> float:
    """Factor of the peak rate at `step` of `n_steps`: up in a straight line, then half a cosine down to zero."""
    n_warm = round(warmup_frac * n_steps)
    if step < n_warm:
        return (step + 1) / (n_warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))


def constant(step: int, n_steps: int, warmup_frac: float) -> float:  # noqa: ARG001
    """The peak rate throughout."""
    return 1.0


def stairs(boundaries: Sequence[float], n_warm: int = 0, factor: float = 0.1) -> Rate:
    """Times `factor` at each of `boundaries`, shares of all steps, after a linear warm-up of `n_warm` steps."""

    def rate(step: int, n_steps: int, warmup_frac: float) -> float:  # noqa: ARG001
        warm = min(1.0, (step + 1) / n_warm) if n_warm else 1.0
        return warm * factor ** sum(step >= share * n_steps for share in boundaries)

    return rate


class Optimizer:
    """One update rule over groups of named weights; `factor` of the peak rates is given with every step."""

    def __init__(self, weights: Mapping[str, Tensor], groups: Sequence[Group], *, grad_clip: float = 0.0) -> None:
        self.groups = tuple(g for g in groups if g.names)
        self.grad_clip = grad_clip
        self.state: dict[str, Tensor] = {}
        self._weights = dict(weights)
        self._all = [self._weights[n] for g in self.groups for n in g.names]
        self._of_group = [[self._weights[n] for n in g.names] for g in self.groups]
        self.peak = {n: g.lr for g in self.groups for n in g.names}

    decoupled = False  # whether penalties must act beside the update instead of through the gradient

    def rates(self, factor: float) -> dict[str, float]:
        """The learning rate of each weight."""
        return {name: lr * factor for name, lr in self.peak.items()}

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Update every weight from its gradient, then forget the gradients."""
        for weight in self._all:  # a weight that no active loss reaches stays where it is
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        if self.grad_clip > 0:
            self._clip()
        for index, group in enumerate(self.groups):
            weights = self._of_group[index]
            self._update(index, group, weights, [w.grad for w in weights if w.grad is not None], group.lr * factor)
        for weight in self._all:
            weight.grad = None

    def _update(self, index: int, group: Group, weights: list[Tensor], grads: list[Tensor], lr: float) -> None:
        raise NotImplementedError

    def _clip(self) -> None:
        grads = [w.grad for w in self._all if w.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        torch._foreach_mul_(grads, (self.grad_clip / (norm + 1e-6)).clamp(max=1.0))

    def _buffers(self, index: int, kind: str) -> list[Tensor]:
        group = self.groups[index]
        for name in group.names:
            if f"{kind}/{name}" not in self.state:
                self.state[f"{kind}/{name}"] = torch.zeros_like(self._weights[name])
        return [self.state[f"{kind}/{name}"] for name in group.names]

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved state."""
        for key, tensor in state.items():
            name = key.partition("/")[2]
            like = self._weights.get(name)
            # The memory layout follows the weight: with another, the same numbers round differently.
            self.state[key] = torch.empty_like(like).copy_(tensor) if like is not None else tensor.clone()


class Sgd(Optimizer):
    """v <- m v + g;  w <- w - lr v."""

    def __init__(self, weights: Mapping[str, Tensor], groups: Sequence[Group], *, grad_clip: float = 0.0) -> None:
        super().__init__(weights, groups, grad_clip=grad_clip)
        self._velocity: list[list[Tensor] | None] = [None] * len(self.groups)

    def _update(self, index: int, group: Group, weights: list[Tensor], grads: list[Tensor], lr: float) -> None:
        if group.momentum == 0:
            torch._foreach_add_(weights, grads, alpha=-lr)
            return
        velocity = self._velocity[index]
        if velocity is None:
            velocity = self._velocity[index] = self._buffers(index, "velocity")
        torch._foreach_mul_(velocity, group.momentum)
        torch._foreach_add_(velocity, grads)
        torch._foreach_add_(weights, velocity, alpha=-lr)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        self._velocity = [None] * len(self.groups)


class AdamW(Optimizer):
    """Adam with decoupled decay left to the penalty parts (Kingma & Ba 2015; Loshchilov & Hutter 2019)."""

    decoupled = True

    def __init__(self, weights: Mapping[str, Tensor], groups: Sequence[Group], *, grad_clip: float = 0.0) -> None:
        super().__init__(weights, groups, grad_clip=grad_clip)
        self.n_steps = 0

    @torch.no_grad()
    def step(self, factor: float) -> None:
        self.n_steps += 1
        self.state["n_steps"] = torch.tensor(self.n_steps)
        super().step(factor)

    def _update(self, index: int, _: Group, weights: list[Tensor], grads: list[Tensor], lr: float) -> None:
        first, second = self._buffers(index, "first"), self._buffers(index, "second")
        torch._foreach_lerp_(first, grads, 1 - BETAS[0])
        torch._foreach_mul_(second, BETAS[1])
        torch._foreach_addcmul_(second, grads, grads, 1 - BETAS[1])
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, math.sqrt(1 - BETAS[1] ** self.n_steps))
        torch._foreach_add_(root, EPSILON)
        torch._foreach_addcdiv_(weights, first, root, -lr / (1 - BETAS[0] ** self.n_steps))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        self.n_steps = int(state["n_steps"]) if state else 0  # none yet where a phase was paused before its first step


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": Sgd, "adamw": AdamW}
