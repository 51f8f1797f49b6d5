"""Exponential moving average of the weights: a <- d a + (1 - d) w after every step; the average is what counts on val.

d_t = min(decay, (1 + t) / (10 + t)), so that the first steps do not drag the start along for long; the average begins
as the weights after the first step (t = 0) of each phase. Live weights are trained on as if there were no average.
Batch-norm statistics are averaged as well: those of the live weights would not fit the averaged ones. (Some codes copy
them from the live network, some average parameters alone.) Polyak & Juditsky 1992; Tarvainen & Valpola 2017.
Cost: two passes over the trainable weights per step, one copy of them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import FloatRange
from transfer.step import PartState, Weights

SPACE = {"decay": FloatRange(low=0.9, high=0.9999, default=0.99)}


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, decay: float,
) -> None:  # fmt: skip
    live = {**weights.tensors, **weights.buffers}
    if not state.averaged:
        state.averaged = {name: torch.empty_like(t).copy_(t) for name, t in live.items()}
        return
    state.n_steps += 1
    keep = min(decay, (1 + state.n_steps) / (10 + state.n_steps))
    torch._foreach_lerp_(list(state.averaged.values()), [live[n] for n in state.averaged], 1 - keep)
