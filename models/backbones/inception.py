"""Inception v3 (Szegedy et al. 2016), a stage per resolution; the second head in its middle is left out.

The published weights were trained on pixels in -1 ... 1. torchvision gives them ImageNet's mean and deviation as every
other network's and undoes that in the network; so does the stem here.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE

from domain.catalogue import Preprocessing
from models.anatomy import Anatomy, Variant, gather, last_convs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VARIANTS = {
    "inception_v3": Variant(
        summary="branches of several kernel sizes side by side; native at 299 pixels",
        settings={"narrow": 1, "pools": True, "left_out": (), "renormalise": True},
        weights="Inception_V3_Weights.IMAGENET1K_V1",
        min_resolution=75,
        resolutions=(96, 128, 160, 192, 224, 299),
    ),
    "tiny_inception": Variant(
        summary="a miniature for tests",
        settings={
            "narrow": 16,  # every width divided by this
            "pools": False,
            "left_out": ("Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7c"),
            "renormalise": True,
        },
        preprocessing=Preprocessing(resize=32, crop=32, interpolation="bilinear", mean=MEAN, std=STD),
        resolutions=(32,),
        public=False,
    ),
}
PLAN = {
    "stem": ("renormalise", "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"),
    "stage1": ("maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
    "stage2": ("maxpool2", "Mixed_5b", "Mixed_5c", "Mixed_5d"),
    "stage3": ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    "stage4": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}
# The pooled branch runs last and is a shortcut: one 1x1 convolution. The tap is the end of the deepest branch.
SHORTCUTS = frozenset({"branch_pool"})


class Renormalise(nn.Module):
    """(x - ImageNet's mean) / its deviation -> (x - 0.5) / 0.5."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("scale", (std / 0.5).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def build(variant: Variant) -> Anatomy:
    """Assembled from torchvision's modules, whose own network has no narrow members."""
    narrow: int = variant.settings["narrow"]
    parts = _parts(narrow, pools=variant.settings["pools"])
    kept = {stage: tuple(p for p in paths if p not in variant.settings["left_out"]) for stage, paths in PLAN.items()}
    stages, names = gather(parts, kept)
    for module in parts.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.1, a=-2, b=2)
    return Anatomy(
        stages=stages,
        taps=tuple(stages),
        feature_dim=2048 // narrow,
        names=names,
        head_name="fc",
        head_scope="fc",
        left_out=("AuxLogits",),
        conv_taps=last_convs(stages, stages, aside=SHORTCUTS),
    )


def _parts(narrow: int, *, pools: bool) -> nn.Module:
    def conv(channels: int, wide: int, **options: Any) -> nn.Module:
        unit: nn.Module = BasicConv2d(3 if channels == 3 else channels // narrow, wide // narrow, **options)
        return unit

    kinds = (InceptionA, InceptionB, InceptionC, InceptionD, InceptionE)
    a, b, c, d, e = (partial(kind, conv_block=conv) for kind in kinds)
    pool = nn.MaxPool2d(3, stride=2) if pools else nn.Identity()
    return nn.Sequential(
        OrderedDict(
            renormalise=Renormalise(),
            Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
            Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
            Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
            maxpool1=pool,
            Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
            Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
            maxpool2=pool,
            Mixed_5b=a(192, pool_features=32),
            Mixed_5c=a(256, pool_features=64),
            Mixed_5d=a(288, pool_features=64),
            Mixed_6a=b(288),
            Mixed_6b=c(768, channels_7x7=128),
            Mixed_6c=c(768, channels_7x7=160),
            Mixed_6d=c(768, channels_7x7=160),
            Mixed_6e=c(768, channels_7x7=192),
            Mixed_7a=d(768),
            Mixed_7b=e(1280),
            Mixed_7c=e(2048),
        )
    )
