"""Keep the first `depth` stages of the source and draw the rest anew (Yosinski et al. 2014, AnB+; with freeze: AnB).

With n = `depth`, A the source's problem and B the trial's:
AnB+    this part alone: the first n stages are copied and trained on
AnB     beside `schedule.freeze` of the same depth: neither weights nor running statistics of the copy change
BnB, BnB+ ("selffer")   the same two where the source was itself trained on B: what its layers lose by being cut apart

What is drawn anew has no starting point: it belongs to the head's penalty group and trains at the head's rate. Depth 0
draws everything anew, at the number of stages or beyond nothing but the head is new. To fine-tune above a frozen depth
with the pretrained weights kept is `schedule.freeze` alone, and not AnB.

Cost: as plain fine-tuning.
"""

import torch
from torch import nn

from domain.errors import Invalid
from domain.space import IntRange
from models.network import Network
from transfer.phase import Rebuilt, Site

SPACE = {"depth": IntRange(low=0, high=32, default=3)}
NEEDS = ("start",)
CONSTANT = {"layer_scale": 1e-6}
TABLES = ("relative_position_bias_table",)  # looked up, not multiplied with: the rule for matrices is not for them
TABLE_STD = 0.02


def rebuild(net: Network, site: Site, *, depth: int) -> Rebuilt:
    renewed = net.stage_names[depth:]
    for name in renewed:
        for module in net.get_submodule(name).modules():
            _renew(module, site.rng)
    return Rebuilt(net, new=tuple(renewed))


@torch.no_grad()
def _renew(module: nn.Module, rng: torch.Generator) -> None:
    """Draw the weights that a module itself owns: He's normal for convolutions, Glorot's for fully connected layers."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.reset_parameters()
        return
    for name, weight in module.named_parameters(recurse=False):
        if name in CONSTANT:
            weight.fill_(CONSTANT[name])
        elif name in TABLES or (weight.ndim > 2 and not isinstance(module, nn.Conv2d)):  # class token, positions
            weight.normal_(0.0, TABLE_STD, generator=rng)
        elif name.endswith("bias"):
            weight.zero_()
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=rng)
        elif weight.ndim == 2:
            nn.init.xavier_uniform_(weight, generator=rng)
        elif weight.ndim == 1 and name == "weight":  # of a norm
            weight.fill_(1.0)
        else:
            raise Invalid("cannot_renew", f"{type(module).__name__}.{name}: no rule to draw it anew")
