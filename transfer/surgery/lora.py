"""Learn a change of low rank to each frozen weight of the blocks, and the head (LoRA, Hu et al., ICLR 2022).

W <- W + (alpha / r) B A        W (out, in), A (r, in), B (out, r)

On every fully connected layer inside the blocks: an attention's joint projection of queries, keys and values, its
output projection, the MLP. On convolutions a kernel (out, in, k, k) counts as (out, in k k): that is a k x k
convolution to r channels, with the stride and padding of W, and a 1x1 convolution from there to `out`. Grouped and
depthwise kernels are left alone: a change of low rank mixes channels that they keep apart. r is at most the smaller
side of W. A begins as He's uniform draw, B as zeros: the network begins exactly as the frozen one. Trained are A, B and
the head; batch norms stay with their statistics, biases and layer norms stay.
The sum is formed before each product, so the merged network is the network, to the bit; the authors' code adds two
products, drops activations out before A (not here), and adapts queries and values alone by default.

Cost: as plain fine-tuning per step, plus one product B A per weight; r (in + out) weights per layer.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from domain.space import FloatRange, IntRange
from models.network import Network
from transfer.grafting import become, drawing, still
from transfer.phase import Rebuilt, Site, covers

SPACE = {
    "rank": IntRange(low=1, high=64, log=True, default=8),
    "alpha": FloatRange(low=1.0, high=128.0, log=True, default=16.0),
}
NEEDS = ("start", "blocks")
ADDS_WEIGHTS = True
CHANGE = "lora"


def rebuild(net: Network, site: Site, *, rank: int, alpha: float) -> Rebuilt:
    new: list[str] = []
    for path, module in list(net.named_modules()):
        name = changed_weight(module)
        if name is None or not covers(net.block_names, path):
            continue
        weight = module._parameters[name]
        assert weight is not None
        with drawing(site.rng):
            module.add_module(CHANGE, Change(weight.shape, rank, alpha))
        kind: Any = type(module)
        become(module, kind_of(kind, name))
        new.append(f"{path}.{CHANGE}")
    return Rebuilt(net, new=tuple(new), frozen=still(net, new))


def changed_weight(module: nn.Module) -> str | None:
    """The weight of a module that a change is learned to."""
    if isinstance(module, nn.MultiheadAttention):
        return "in_proj_weight" if module._qkv_same_embed_dim else None
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        return "weight"
    return None


class Change(nn.Module):
    """(alpha / r) B A in the shape of the weight it is added to."""

    def __init__(self, shape: torch.Size, rank: int, alpha: float) -> None:
        super().__init__()
        n_out, n_in = shape[0], math.prod(shape[1:])
        r = min(rank, n_out, n_in)
        self.shape = tuple(shape)
        self.scale = alpha / r
        self.a_weight = nn.Parameter(torch.empty(r, n_in))
        self.b_weight = nn.Parameter(torch.zeros(n_out, r))
        nn.init.kaiming_uniform_(self.a_weight, a=math.sqrt(5))

    def forward(self) -> Tensor:
        return (self.scale * (self.b_weight @ self.a_weight)).view(self.shape)


@cache
def kind_of(kind: type[nn.Module], name: str) -> type[nn.Module]:
    """`kind` whose weight `name` reads as the sum of the stored one and its change.

    The stored weight keeps its name: what is stored lies in the module's table of parameters, what is read is this.
    """

    def changed(self: Any) -> Tensor:
        stored: Tensor = self._parameters[name]
        change: Tensor = self.get_submodule(CHANGE)()
        return stored + change.to(stored.dtype)  # of less precision under autocast

    return type(f"LowRank{kind.__name__}", (kind,), {name: property(changed)})
