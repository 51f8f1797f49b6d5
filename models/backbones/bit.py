"""Big Transfer (Kolesnikov et al. 2020): ResNet v2 with group norm and standardised weights instead of batch norm.

Blocks norm before they convolve, so the last group is followed by a norm of its own, the stage `norm`. Standardised
weights mean something only to networks that were trained with them: no weights of another family fit here. The user
supplies the file, in Graft's naming or in that of the public PyTorch port (`root body.block1.unit01 head`).
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from domain.catalogue import Preprocessing
from models.anatomy import SMALL_PICTURES, Anatomy, Variant, last_convs

EPSILON = 1e-10  # ports with 1e-5 or 1e-8 give other logits from the same weights
VARIANTS = {
    "bit_r50x1": Variant(
        summary="ResNet-50 v2 with group norm and weight standardisation, for the BiT weights that a user supplies",
        settings={"width": 64, "depths": (3, 4, 6, 3), "groups": 32},
        preprocessing=Preprocessing(
            resize=256, crop=224, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        ),
        resolutions=(96, 128, 160, 192, 224, 384, 480),
    ),
    "tiny_bit": Variant(
        summary="a miniature for tests",
        settings={"width": 8, "depths": (1, 1, 2), "groups": 4},
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}


class StandardisedConv2d(nn.Conv2d):
    """A convolution with `standardised(weight)`; what is stored and trained is the weight itself."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(x, standardised(self.weight), self.bias)
        return out


def standardised(weight: Tensor) -> Tensor:
    """(w - mean) / sqrt(var + 1e-10) per filter, over (in, kh, kw), with the biased variance."""
    centred: Tensor = weight - weight.mean((1, 2, 3), keepdim=True)
    return centred / torch.sqrt(centred.square().mean((1, 2, 3), keepdim=True) + EPSILON)


class ZeroEdgedMaxPool(nn.Module):
    """3x3 at stride 2 over a map with zeros around it; a zero of the edge may be the largest of its window.

    Max pooling's own padding never wins. Padding first would say it in one line, but ONNX Runtime takes a padding
    before a pooling for the pooling's own, and then computes another network.
    """

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.max_pool2d(x, 3, stride=2, padding=1)
        rows, columns = (self._beyond(n, size, x) for n, size in zip(pooled.shape[2:], x.shape[2:], strict=True))
        floor = x.new_full((1,), -torch.inf).masked_fill(rows[:, None] | columns, 0.0)
        return torch.maximum(pooled, floor)

    @staticmethod
    def _beyond(n: int, size: int, x: Tensor) -> Tensor:
        """(n,): whether window i, over 2 i - 1 ... 2 i + 1, reaches over the edge."""
        at = torch.arange(n, device=x.device)
        return (at == 0) | (2 * at + 1 >= size)


class Block(nn.Module):
    """Three times norm, ReLU, convolution (1x1, 3x3, 1x1); the shortcut's convolution reads the first ReLU."""

    def __init__(self, channels: int, wide: int, stride: int, groups: int) -> None:
        super().__init__()
        inner = wide // 4
        self.gn1 = nn.GroupNorm(groups, channels)
        self.conv1 = StandardisedConv2d(channels, inner, 1, bias=False)
        self.gn2 = nn.GroupNorm(groups, inner)
        self.conv2 = StandardisedConv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.gn3 = nn.GroupNorm(groups, inner)
        self.conv3 = StandardisedConv2d(inner, wide, 1, bias=False)
        turned = stride != 1 or channels != wide
        self.downsample = StandardisedConv2d(channels, wide, 1, stride=stride, bias=False) if turned else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = functional.relu(self.gn1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        out = self.conv2(functional.relu(self.gn2(out)))
        out = self.conv3(functional.relu(self.gn3(out)))
        return out + shortcut


def build(variant: Variant) -> Anatomy:
    width, groups = variant.settings["width"], variant.settings["groups"]
    stem = OrderedDict(
        conv=StandardisedConv2d(3, width, 7, stride=2, padding=3, bias=False),
        pool=ZeroEdgedMaxPool(),
    )
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(stem)}
    names = {"root": "stem", "head.gn": "norm.gn"}
    channels = width
    for n, depth in enumerate(variant.settings["depths"]):
        wide = (4 * width) << n
        stage = nn.Sequential()
        for k in range(depth):
            first = k == 0
            block = Block(channels if first else wide, wide, 2 if first and n else 1, groups)
            stage.add_module(f"unit{k + 1:02d}", block)
        stages[f"block{n + 1}"] = stage
        names[f"body.block{n + 1}"] = f"block{n + 1}"
        channels = wide
    taps = tuple(stages)
    stages["norm"] = nn.Sequential(OrderedDict(gn=nn.GroupNorm(groups, channels), relu=nn.ReLU(inplace=True)))
    for module in nn.ModuleDict(stages).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return Anatomy(
        stages=stages,
        taps=taps,
        feature_dim=channels,
        names=names,
        head_name="head.conv",
        head_scope="head.conv",
        block_types=(Block,),
        conv_taps=last_convs(stages, taps),
    )
