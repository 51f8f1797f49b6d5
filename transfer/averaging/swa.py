"""Stochastic weight averaging: the plain mean of the weights along the last `share` of every phase.

    a <- a + (w - a) / (k + 1)          after each step, k = weights averaged before; a is the mean of all k + 1

The mean is what counts on val and what the phase ends with; before its first step the live weights count. Izmailov et
al. 2018, arXiv:1803.05407, average once per epoch or cycle at a constant or cyclical learning rate and pass over train
once more to measure the batch-norm statistics of the mean. Here every step counts, the rate is that of the phase
(cosine, unless the schedule says otherwise, which gives the last steps less reach than a constant rate would), and the
running statistics are averaged like the weights, without another pass. A phase of fewer than 1 / share steps is not
averaged.
Cost: two passes over the trainable weights per averaged step, one copy of them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from domain.space import FloatRange
from transfer.step import PartState, Weights

SPACE = {"share": FloatRange(low=0.05, high=0.75, default=0.25)}


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, share: float,
) -> None:  # fmt: skip
    if not is_counted(state.progress, share=share):
        return
    live = {**weights.tensors, **weights.buffers}
    if not state.averaged:
        state.averaged = {name: torch.empty_like(t).copy_(t) for name, t in live.items()}
    else:
        torch._foreach_lerp_(list(state.averaged.values()), [live[n] for n in state.averaged], 1 / (state.n_steps + 1))
    state.n_steps += 1


def is_counted(progress: float, *, share: float) -> bool:
    """Whether a step that began at `progress` in [0, 1) of its phase lies in the last `share` of it."""
    return progress >= 1 - share - 1e-9  # step / n_steps is rounded
