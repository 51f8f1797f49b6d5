"""Feature maps of two networks side by side: which belongs to which, both at one size, and what shape they have."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from models.build import member
from models.ensemble import Ensemble
from models.network import Network
from transfer.step import Step, View

TRIED_SIDE = 64  # pixels of the noise that a network is tried on, where it takes any size
TRIED_ITEMS = 4


def guide_of(step: Step, guide: str) -> View:
    """The onlooker that a param `guide` names."""
    return step.teacher if guide == "teacher" else step.source


def pairs(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Maps of two networks matched by position from the last backwards, those of the guide cut off from the graph.

    What either network has more at its input side has no partner: depth differs there, and what a network says of a
    picture lies at its end.
    """
    n = min(len(own), len(given))
    mine, its = list(own.values())[len(own) - n :], list(given.values())[len(given) - n :]
    return [(a, b.detach()) for a, b in zip(mine, its, strict=True)]


def of_blocks(maps: Mapping[str, Tensor], net: Network) -> dict[str, Tensor]:
    """The maps of stages with residual blocks, all where a network has none: the stem of a residual net stays out."""
    with_blocks = {name.partition(".")[0] for name in net.block_names}
    return {stage: found for stage, found in maps.items() if stage in with_blocks or not with_blocks}


def energy(features: Tensor) -> Tensor:  # (B, c, h, w) -> (B, 1, h, w)
    """sum_channels F^2: where a network looks."""
    return features.float().square().sum(1, keepdim=True)


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:  # (B, c, h, w), (B, c', h', w')
    """Both at the smaller height and width of the two."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    return resized(one, size), resized(other, size)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:  # (B, c, h, w) -> (B, c, *size)
    """Bilinear interpolation, smoothed where it shrinks; themselves where the size is right.

    Written as products with the matrices of the resampling: their gradients, the second ones too, exist and are
    deterministic on every device.
    """
    height, width = size
    if maps.shape[2] != height:
        maps = _resampling(maps.shape[2], height).to(maps) @ maps
    if maps.shape[3] != width:
        maps = maps @ _resampling(maps.shape[3], width).to(maps).T
    return maps


@lru_cache(maxsize=64)
def _resampling(old: int, new: int) -> Tensor:  # (new, old), rows sum to one
    corners = torch.eye(old).view(1, 1, old, old)
    with torch.inference_mode(False), torch.no_grad():
        matrix = functional.interpolate(corners, size=(new, old), mode="bilinear", antialias=new < old)
    return matrix.view(new, old)


def max_pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:  # (B, c, h, w) -> (B, c, *size)
    """The largest value in each window. Windows cover the map and overlap only where the sizes do not divide."""
    (height, width), (new_height, new_width) = maps.shape[2:], size
    stride = (height // new_height, width // new_width)
    window = (height - (new_height - 1) * stride[0], width - (new_width - 1) * stride[1])
    return maps if window == (1, 1) else functional.max_pool2d(maps, window, stride)


def inside(net: Network | Ensemble) -> Network:
    """The network whose inside is looked at: the first one of several."""
    if isinstance(net, Network):
        return net
    first = net.members[0]
    assert isinstance(first, Network)
    return first


@torch.no_grad()
def tried(net: Network) -> dict[str, Tensor]:
    """Feature maps (4, c, h, w) by stage that noise gives, for their shapes and signs. The network stays as it was."""
    variant = member(net.backbone).variant
    side = variant.fixed_resolution or max(variant.min_resolution, TRIED_SIDE)
    noise = torch.randn(TRIED_ITEMS, 3, side, side, generator=torch.Generator().manual_seed(0))
    trained = [module for module in net.modules() if module.training]
    net.eval()
    found = net.look(noise.to(next(net.parameters()).device)).features
    for module in trained:
        module.training = True
    return found
