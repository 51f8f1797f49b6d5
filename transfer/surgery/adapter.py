"""Train bottleneck adapters in a frozen transformer, its layer norms and the head (Houlsby et al., ICML 2019).

x <- x + W_up gelu(W_down x + b_1) + b_2        x (..., d) tokens, W_down (m, d), W_up (d, m)

Two per transformer layer, behind the attention's projection and behind the MLP, each before its residual add.
W_down and W_up begin as normal draws of standard deviation 1e-3, cut at two of them, the biases as zeros: the network
begins all but as the frozen one. Each has 2 m d + d + m weights. Trained are the adapters and the head, at
the head's rate, and every layer norm, at the backbone's; no other weight changes.
The authors' code trains with AdamW, weight decay 0.01 but not on norms and biases: the recipe decides here.

Cost: less than plain fine-tuning per step (no gradients of the backbone's weights); 4 m d more weights per layer.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from domain.space import IntRange
from models.network import Network
from transfer.grafting import drawing, first_of, still, transformer_layers, with_first
from transfer.phase import Rebuilt, Site

SPACE = {"m": IntRange(low=4, high=256, log=True, default=64)}
NEEDS = ("start", "transformer")
ADDS_WEIGHTS = True
STD = 1e-3


def rebuild(net: Network, site: Site, *, m: int) -> Rebuilt:
    new: list[str] = []
    for layer in transformer_layers(net):
        for name, half in (("adapter_attention", layer.attention), ("adapter_mlp", layer.mlp)):
            with drawing(site.rng):
                adapter = Adapter(layer.width, m)
            half.register_forward_hook(adapter.behind)
            layer.block.add_module(name, adapter)
            new.append(f"{layer.path}.{name}")
    return Rebuilt(net, new=tuple(new), frozen=still(net, new, lambda module: isinstance(module, nn.LayerNorm)))


class Adapter(nn.Module):
    """A bottleneck with a skip: tokens (..., d) -> tokens (..., d)."""

    def __init__(self, width: int, m: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, m)
        self.up = nn.Linear(m, width)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=STD, a=-2 * STD, b=2 * STD)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + bottleneck(x, self.down.weight, self.down.bias, self.up.weight, self.up.bias)

    def behind(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Forward hook of the half of a layer that this adapter follows."""
        return with_first(output, self(first_of(output)))


def bottleneck(x: Tensor, w_down: Tensor, b_1: Tensor, w_up: Tensor, b_2: Tensor) -> Tensor:
    """(..., d), (m, d), (m,), (d, m), (d,) -> (..., d)."""
    inner = functional.gelu(functional.linear(x, w_down, b_1))
    return functional.linear(inner, w_up, b_2)
