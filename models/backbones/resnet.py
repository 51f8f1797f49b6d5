"""Residual networks (He et al. 2016): a stem and four groups of residual blocks. Weight names are torchvision's."""

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from domain.catalogue import Preprocessing
from models.anatomy import SMALL_PICTURES, Anatomy, Variant, last_convs

IMAGENET = Preprocessing(
    resize=256, crop=224, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
VARIANTS = {
    "resnet18": Variant(
        summary="18 layers, two 3x3 convolutions per block: the usual first choice",
        settings={"block": "basic", "depths": (2, 2, 2, 2), "width": 64},
        weights="ResNet18_Weights.IMAGENET1K_V1",
    ),
    "resnet34": Variant(
        summary="34 layers, two 3x3 convolutions per block",
        settings={"block": "basic", "depths": (3, 4, 6, 3), "width": 64},
        weights="ResNet34_Weights.IMAGENET1K_V1",
    ),
    "resnet50": Variant(
        summary="50 layers, bottleneck blocks: the reference of the transfer literature",
        settings={"block": "bottleneck", "depths": (3, 4, 6, 3), "width": 64},
        weights="ResNet50_Weights.IMAGENET1K_V1",
    ),
    "resnet101": Variant(
        summary="101 layers, bottleneck blocks: a large source or teacher",
        settings={"block": "bottleneck", "depths": (3, 4, 23, 3), "width": 64},
        weights="ResNet101_Weights.IMAGENET1K_V1",
    ),
    "resnet10": Variant(
        summary="one block per group: half the depth of resnet18, for quick work; no published weights",
        settings={"block": "basic", "depths": (1, 1, 1, 1), "width": 64},
        preprocessing=IMAGENET,
    ),
    "resnet18_w025": Variant(
        summary="resnet18 at a quarter of its width, for quick work; no published weights",
        settings={"block": "basic", "depths": (2, 2, 2, 2), "width": 16},
        preprocessing=IMAGENET,
    ),
    "tiny_resnet": Variant(
        summary="a miniature for tests",
        settings={"block": "basic", "depths": (1, 1, 1, 1), "width": 8},
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}
BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


def build(variant: Variant) -> Anatomy:
    """Assembled from torchvision's blocks, whose own ResNet has no narrow members."""
    block = BLOCKS[variant.settings["block"]]
    width: int = variant.settings["width"]
    stages: dict[str, nn.Module] = {"stem": _stem(width)}
    channels = width
    for n, depth in enumerate(variant.settings["depths"]):
        stages[f"layer{n + 1}"] = _layer(block, channels, width << n, depth, stride=2 if n else 1)
        channels = (width << n) * block.expansion
    for stage in stages.values():
        _initialise(stage)
    return Anatomy(
        stages=stages,
        taps=tuple(stages),
        feature_dim=channels,
        names={"conv1": "stem.conv1", "bn1": "stem.bn1"},
        head_name="fc",
        head_scope="fc",
        block_types=(block,),
        conv_taps=last_convs(stages, stages),
    )


def _stem(width: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        )
    )


def _layer(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, depth: int, stride: int
) -> nn.Module:
    wide = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != wide:
        shortcut = nn.Sequential(nn.Conv2d(channels, wide, 1, stride=stride, bias=False), nn.BatchNorm2d(wide))
    first = block(channels, planes, stride, shortcut)
    return nn.Sequential(first, *(block(wide, planes) for _ in range(1, depth)))


def _initialise(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
