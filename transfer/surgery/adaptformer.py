"""Train a bottleneck beside each MLP of a frozen transformer, and the head (AdaptFormer, Chen et al., NeurIPS 2022).

MLP(y) <- MLP(y) + s (W_up relu(W_down y + b_1) + b_2)      y (..., d) the normed tokens, W_down (m, d), W_up (d, m)

W_down begins as He's uniform draw, W_up and the biases as zeros: the network begins exactly as the frozen one. Each
branch has 2 m d + d + m weights. Trained are these and the head; no weight or layer norm of the backbone changes. The
branch reads what the MLP reads, as the paper's formula has it; the authors' code can feed it the tokens before the
norm, or a norm of its own.

Cost: less than plain fine-tuning per step (no gradients of the backbone's weights); 2 m d more weights per layer.
"""

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from domain.space import FloatRange, IntRange
from models.network import Network
from transfer.grafting import drawing, still, transformer_layers
from transfer.phase import Rebuilt, Site

SPACE = {
    "m": IntRange(low=4, high=256, log=True, default=64),
    "s": FloatRange(low=0.05, high=2.0, log=True, default=0.1),
}
NEEDS = ("start", "transformer")
ADDS_WEIGHTS = True


def rebuild(net: Network, site: Site, *, m: int, s: float) -> Rebuilt:
    new: list[str] = []
    for layer in transformer_layers(net):
        with drawing(site.rng):
            branch = Branch(layer.width, m, s)
        layer.mlp.register_forward_hook(branch.beside)
        layer.block.add_module("adaptformer", branch)
        new.append(f"{layer.path}.adaptformer")
    return Rebuilt(net, new=tuple(new), frozen=still(net, new))


class Branch(nn.Module):
    """What stands beside an MLP: tokens (..., d) -> tokens (..., d)."""

    def __init__(self, width: int, m: int, s: float) -> None:
        super().__init__()
        self.s = s
        self.down = nn.Linear(width, m)
        self.up = nn.Linear(m, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for weight in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(weight)

    def forward(self, y: Tensor) -> Tensor:
        return self.s * branch(y, self.down.weight, self.down.bias, self.up.weight, self.up.bias)

    def beside(self, _: nn.Module, inputs: Any, output: Any) -> Any:
        """Forward hook of the MLP."""
        return output + self(inputs[0])


def branch(y: Tensor, w_down: Tensor, b_1: Tensor, w_up: Tensor, b_2: Tensor) -> Tensor:
    """(..., d), (m, d), (m,), (d, m), (d,) -> (..., d)."""
    inner = functional.relu(functional.linear(y, w_down, b_1))
    return functional.linear(inner, w_up, b_2)
