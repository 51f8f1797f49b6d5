"""Attention transfer: where the network looks stays near where the source looked (Zagoruyko & Komodakis, ICLR 2017).

Q = vec(sum_channels F^2) / ||.||_2 per sample and tap, F (B, c, h, w) the feature map of student (S) or source (T)

mode "code"    beta * sum_taps mean_{b, pixels} (Q_S - Q_T)^2        what the authors' code computes, beta about 1e3
mode "paper"   beta / 2 * sum_taps mean_b ||Q_S - Q_T||_2            equation 2, the norm unsquared

The two are on different scales: beta of one says nothing about beta of the other.
"""

import torch
from torch import Tensor
from torch.nn import functional

from domain.space import Choice, FloatRange
from transfer.step import Step

SPACE = {
    "beta": FloatRange(low=1e-2, high=1e4, log=True, default=1e3),
    "mode": Choice(options=("code", "paper"), default="code"),
}
NEEDS = ("start", "taps")


def loss(step: Step, *, beta: float, mode: str) -> Tensor:  # ()
    own, given = step.student.features, step.source.features
    distances = [distance(own[tap], given[tap], mode=mode) for tap in own if tap in given]
    return beta * torch.stack(distances).sum() if distances else torch.zeros(())


def distance(own: Tensor, given: Tensor, *, mode: str) -> Tensor:  # (B, c, h, w), (B, c', h, w) -> ()
    gap = attention_map(own) - attention_map(given)
    found: Tensor = gap.square().mean() if mode == "code" else torch.linalg.vector_norm(gap, dim=1).mean() / 2
    return found


def attention_map(features: Tensor) -> Tensor:  # (B, c, h, w) -> (B, h * w), unit length
    return functional.normalize(features.float().square().sum(1).flatten(1), dim=1)
