"""Keep the first `depth` stages of the source and draw the rest anew (Yosinski et al. 2014, AnB+; with freeze: AnB).

What is drawn anew has no starting point: it belongs to the head's penalty group and trains at the head's rate.
"""

import torch
from torch import nn

from domain.errors import Invalid
from domain.space import IntRange
from models.network import Network
from transfer.phase import Rebuilt

SPACE = {"depth": IntRange(low=0, high=32, default=3)}
NEEDS = ("start",)


def rebuild(net: Network, rng: torch.Generator, *, depth: int) -> Rebuilt:
    renewed = net.stage_names[depth:]
    for name in renewed:
        for module in net.get_submodule(name).modules():
            _renew(module, rng)
    return Rebuilt(net, new=tuple(renewed))


@torch.no_grad()
def _renew(module: nn.Module, rng: torch.Generator) -> None:
    """Draw the weights that a module itself owns: He's normal for convolutions, Glorot's for fully connected layers."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.reset_parameters()
        return
    for name, weight in own.items():
        if isinstance(module, nn.Conv2d) and name == "weight":
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=rng)
        elif weight.ndim == 2:
            nn.init.xavier_uniform_(weight, generator=rng)
        elif name.endswith("bias"):
            weight.zero_()
        elif weight.ndim == 1 and name == "weight":
            weight.fill_(1.0)
        elif name in CONSTANT:
            weight.fill_(CONSTANT[name])
        elif weight.ndim > 2:
            weight.normal_(0.0, 0.02, generator=rng)
        else:
            raise Invalid("cannot_renew", f"{type(module).__name__}.{name}: no rule to draw it anew")


CONSTANT = {"layer_scale": 1e-6}
