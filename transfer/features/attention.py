"""Attention transfer: where the network looks stays near where its guide looks (Zagoruyko & Komodakis, ICLR 2017).

Q = vec(sum_channels F^2) / ||.||_2 per sample and tap, F (B, c, h, w) the feature map of student (S) or guide (T)

mode "code"    beta * sum_taps mean_{b, pixels} (Q_S - Q_T)^2        what the authors' code computes, beta about 1e3
mode "paper"   beta / 2 * sum_taps mean_b ||Q_S - Q_T||_2            equation 2, the norm unsquared

The two are on different scales: beta of one says nothing about beta of the other, so its range covers both. The guide
is the source as loaded or the job's teacher. Taps are the outputs of the stages (of those with residual blocks where
there are some: not the stem's), matched by position from the last backwards, since a teacher of another backbone calls
them differently and may have more; where h, w differ, sum_channels F^2 of the larger map is interpolated to the
smaller. Token networks are read as maps of their patches, without the class token. (Other codes sum |F|^p, or average
over taps where this sums.)

Cost: one forward pass of the guide per step.
"""

import torch
from torch import Tensor
from torch.nn import functional

from domain.space import Choice, FloatRange
from transfer.maps import energy, guide_of, of_blocks, pairs, same_size
from transfer.step import Step

SPACE = {
    "beta": FloatRange(low=1e-2, high=1e4, log=True, default=1e3),
    "mode": Choice(options=("code", "paper"), default="code"),
    "guide": Choice(options=("source", "teacher"), default="source"),
}
NEEDS = ("taps",)
NEEDS_BY = {"guide": {"source": "start", "teacher": "teacher"}}
COMPARES = "maps"


def loss(step: Step, *, beta: float, mode: str, guide: str) -> Tensor:  # ()
    matched = pairs(of_blocks(step.student.features, step.net), guide_of(step, guide).features)
    return beta * torch.stack([distance(own, given, mode=mode) for own, given in matched]).sum()


def distance(own: Tensor, given: Tensor, *, mode: str) -> Tensor:  # (B, c, h, w), (B, c', h', w') -> ()
    mine, its = same_size(energy(own), energy(given))
    gap = unit(mine) - unit(its)
    found: Tensor = gap.square().mean() if mode == "code" else torch.linalg.vector_norm(gap, dim=1).mean() / 2
    return found


def attention_map(features: Tensor) -> Tensor:  # (B, c, h, w) -> (B, h * w), unit length
    return unit(energy(features))


def unit(maps: Tensor) -> Tensor:  # (B, 1, h, w) -> (B, h * w), unit length
    return functional.normalize(maps.flatten(1), dim=1)
