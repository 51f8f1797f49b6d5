"""Normalise each channel by running or by batch statistics, drawn anew each step (StochNorm, Kou et al., NeurIPS 2020).

y = gamma ((1 - s) (x - mu_B) / sqrt(var_B + eps) + s (x - mu) / sqrt(var + eps)) + beta      x (B, c, h, w)

s ~ Bernoulli(p) per channel and step; mu_B, var_B (c,) of the batch; mu, var (c,) the running statistics as they were
before the batch, which then move as in batch norm. It holds in training alone: at evaluation it is batch norm, and the
names of the weights are those of batch norm. p = 0 is batch norm in training too; at p = 1 the gradient does not pass
through the batch's statistics. Released code updates the running statistics first and then normalises by them.
A batch norm that the recipe keeps in evaluation mode (`batch_norm` other than "train") draws nothing.

Cost: the batch norms twice; nothing at evaluation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from domain.space import FloatRange
from models.network import Network
from transfer.grafting import become
from transfer.phase import Rebuilt, Site

SPACE = {"p": FloatRange(low=0.0, high=1.0, default=0.5)}
NEEDS = ("start", "batch_norm")
DEMANDS = {"batch_norm": ("train",)}


def rebuild(net: Network, site: Site, *, p: float) -> Rebuilt:  # noqa: ARG001
    for module in net.modules():
        if type(module) is nn.BatchNorm2d and module.track_running_stats:
            become(module, StochNorm2d)
            module.__dict__["p"] = p
    return Rebuilt(net)


class StochNorm2d(nn.BatchNorm2d):
    """Batch norm that in training takes a share `p` of the channels by running statistics."""

    p: float = 0.5
    draws_at_random = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(x)
        mean, var = self.running_mean.clone(), self.running_var.clone()  # the batch moves them
        by_batch = super().forward(x)
        by_running = functional.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        chosen = torch.rand(self.num_features, device=x.device) < self.p
        return choose(chosen, by_running, by_batch)


def choose(chosen: Tensor, by_running: Tensor, by_batch: Tensor) -> Tensor:
    """(c,) whether, (B, c, h, w) if so, (B, c, h, w) if not -> (B, c, h, w)."""
    return torch.where(chosen[:, None, None], by_running, by_batch)
