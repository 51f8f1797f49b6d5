"""SqueezeNet 1.1 (Iandola et al. 2016), a stage per resolution.

Its classifier is convolution, ReLU, pooling: no linear head over pooled features, so none is taken over from a source.
"""

from torch import nn
from torchvision.models.squeezenet import Fire

from models.anatomy import SMALL_PICTURES, Anatomy, Variant, gather, last_convs, plan_by_stride

VARIANTS = {
    "squeezenet1_1": Variant(
        summary="squeeze-and-expand modules: the smallest download, no batch norm",
        settings={
            "stem": 64,
            # channels squeezed to, channels of each expansion; "M" halves the map
            "layers": (
                *("M", (16, 64), (16, 64)),
                *("M", (32, 128), (32, 128)),
                *("M", (48, 192), (48, 192), (64, 256), (64, 256)),
            ),
        },
        weights="SqueezeNet1_1_Weights.IMAGENET1K_V1",
    ),
    "tiny_squeezenet": Variant(
        summary="a miniature for tests",
        settings={"stem": 8, "layers": ("M", (8, 8), "M", (8, 16), (8, 16))},
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}


def build(variant: Variant) -> Anatomy:
    channels: int = variant.settings["stem"]
    features = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2), nn.ReLU())
    for row in variant.settings["layers"]:
        if row == "M":
            features.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
        else:
            squeezed, expanded = row
            features.append(Fire(channels, squeezed, expanded, expanded))
            channels = 2 * expanded
    for module in features.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # the output of the convolution before it can be tapped
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    stages, names = gather(nn.ModuleDict({"features": features}), plan_by_stride(features))
    return Anatomy(
        stages=stages,
        taps=tuple(stages),
        feature_dim=channels,
        names=names,
        head_scope="classifier",
        conv_taps=last_convs(stages, stages),
    )
