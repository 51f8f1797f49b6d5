"""Mobile networks: v2 (Sandler et al. 2018) and v3 (Howard et al. 2019), a stage per resolution.

v3 ends in a hidden layer before its classifier; it holds pretrained weights, so it is the last stage, `neck`.
"""

from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual, mobilenet_v2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.mobilenetv3 import mobilenet_v3_large, mobilenet_v3_small

from domain.catalogue import Preprocessing
from models.anatomy import SMALL_PICTURES, Anatomy, Variant, gather, last_convs, plan_by_stride

IMAGENET = Preprocessing(
    resize=256, crop=224, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
VARIANTS = {
    "mobilenet_v2": Variant(
        summary="depthwise convolutions in inverted residual blocks: small and easy to tune",
        settings={"version": "v2", "width_mult": 1.0},
        weights="MobileNet_V2_Weights.IMAGENET1K_V1",
    ),
    "mobilenet_v2_w035": Variant(
        summary="mobilenet_v2 at 0.35 of its width: the quick one",
        settings={"version": "v2", "width_mult": 0.35},
        preprocessing=IMAGENET,
    ),
    "mobilenet_v2_w050": Variant(
        summary="mobilenet_v2 at half its width",
        settings={"version": "v2", "width_mult": 0.5},
        preprocessing=IMAGENET,
    ),
    "mobilenet_v3_small": Variant(
        summary="mobile network with squeeze-and-excitation, the smallest with published weights",
        settings={"version": "v3_small", "width_mult": 1.0},
        weights="MobileNet_V3_Small_Weights.IMAGENET1K_V1",
    ),
    "mobilenet_v3_large": Variant(
        summary="mobile network with squeeze-and-excitation, much accuracy for little time",
        settings={"version": "v3_large", "width_mult": 1.0},
        weights="MobileNet_V3_Large_Weights.IMAGENET1K_V1",
    ),
    "tiny_mobilenet_v2": Variant(
        summary="a miniature for tests",
        settings={
            "version": "v2",
            "width_mult": 0.25,
            # expansion, channels, blocks, stride
            "blocks": ((1, 16, 1, 1), (2, 24, 2, 2), (2, 32, 1, 2), (2, 64, 1, 2)),
            "last_channel": 64,
        },
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
    "tiny_mobilenet_v3": Variant(
        summary="a miniature for tests",
        settings={"version": "v3_small", "width_mult": 0.25},
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}


def build(variant: Variant) -> Anatomy:
    if variant.settings["version"] == "v2":
        return _v2(variant)
    return _v3(variant)


def _v2(variant: Variant) -> Anatomy:
    settings = dict(variant.settings)
    narrow = settings.get("last_channel")
    model = mobilenet_v2(
        weights=None,
        width_mult=settings["width_mult"],
        inverted_residual_setting=[list(row) for row in settings["blocks"]] if "blocks" in settings else None,
    )
    if narrow:  # torchvision never goes below 1280 here
        channels = model.features[-1][0].in_channels
        model.features[-1][0] = nn.Conv2d(channels, narrow, 1, bias=False)
        model.features[-1][1] = nn.BatchNorm2d(narrow)
    stages, names = gather(model, plan_by_stride(model.features))
    return Anatomy(
        stages=stages,
        taps=tuple(stages),
        feature_dim=narrow or model.last_channel,
        names=names,
        head_name="classifier.1",
        head_scope="classifier",
        block_types=(InvertedResidual,),
        conv_taps=last_convs(stages, stages),
    )


def _v3(variant: Variant) -> Anatomy:
    make = {"v3_small": mobilenet_v3_small, "v3_large": mobilenet_v3_large}[variant.settings["version"]]
    model = make(weights=None, width_mult=variant.settings["width_mult"])
    stages, names = gather(model, plan_by_stride(model.features))
    taps = tuple(stages)
    hidden, activation = model.classifier[0], model.classifier[1]
    stages["neck"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), hidden, activation)
    names["classifier.0"] = "neck.2"
    return Anatomy(
        stages=stages,
        taps=taps,
        feature_dim=hidden.out_features,
        names=names,
        head_name="classifier.3",
        head_scope="classifier",
        block_types=(InvertedResidualV3,),
        conv_taps=last_convs(stages, taps),
    )
