"""What surgery shares that adds layers to a network whose own weights stay as they are, name and bit.

Added layers hang below the module they work on, under a name of their own, and act through forward hooks that are
bound methods of modules, or through a class that is exchanged in place: a deep copy of the network is a network.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.vision_transformer import EncoderBlock

from models.network import HEAD, Network, seeded
from transfer.phase import covers

BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm)
# What the two halves of a transformer layer are called: each ends before its residual add.
HALVES: dict[type[nn.Module], tuple[str, str]] = {
    EncoderBlock: ("self_attention", "mlp"),
    SwinTransformerBlock: ("attn", "mlp"),
}


class Layer(NamedTuple):
    """A layer of a transformer."""

    path: str
    block: nn.Module
    attention: nn.Module  # tokens (..., D) -> tokens (..., D), or a tuple that begins with them
    mlp: nn.Module  # tokens (..., D) -> tokens (..., D)
    width: int  # D


def transformer_layers(net: Network) -> Iterator[Layer]:
    """The transformer layers of a network, input side first."""
    for path, block in list(net.named_modules()):
        for kind, (attention, mlp) in HALVES.items():
            if isinstance(block, kind):
                first = next(m for m in block.get_submodule(mlp).modules() if isinstance(m, nn.Linear))
                yield Layer(path, block, block.get_submodule(attention), block.get_submodule(mlp), first.in_features)


def is_norm(module: nn.Module) -> bool:
    """Whether this is a normalisation layer of any kind."""
    return isinstance(module, NORMS)


def still(net: Network, new: Sequence[str], trained: Callable[[nn.Module], bool] = lambda _: False) -> tuple[str, ...]:
    """Names of all that no phase may train: every weight but the head, what is new, and what modules `trained` own.

    A batch norm among them is named as a whole, so that its running statistics stay as well.
    """
    found: list[str] = []
    for path, module in net.named_modules():
        if covers((HEAD, *new), path) or trained(module):
            continue
        if isinstance(module, BATCH_NORM):
            found.append(path)
        else:
            own = (f"{path}.{name}" for name, _ in module.named_parameters(recurse=False))
            found += [name for name in own if not covers(tuple(new), name)]
    return tuple(found)


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another class, one that computes from the same weights: place, names, hooks and mode stay."""
    module.__class__ = kind


@contextmanager
def drawing(rng: torch.Generator) -> Iterator[None]:
    """Modules made inside draw their weights from `rng`; the global random state is left alone."""
    with seeded(int(torch.randint(2**62, (), generator=rng))):
        yield


def fresh_head(width: int, n_classes: int, rng: torch.Generator) -> nn.Linear:
    """A linear layer drawn as torch draws one, from `rng`."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, width, n_classes)
    for weight in head.parameters():
        nn.init.uniform_(weight, -(width**-0.5), width**-0.5, generator=rng)
    return head


def first_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The tokens: attention returns them in front of its weights."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Tensor | tuple[Tensor, ...], tokens: Tensor) -> Tensor | tuple[Tensor, ...]:
    """The same output with other tokens in it."""
    return (tokens, *output[1:]) if isinstance(output, tuple) else tokens
