"""EfficientNet (Tan & Le 2019) and its second version (2021), a stage per resolution.

Stochastic depth is off: what regularizes a trial is chosen in its recipe, and a resumed trial repeats itself.
"""

from torchvision.models.efficientnet import (
    EfficientNet,
    FusedMBConv,
    FusedMBConvConfig,
    MBConv,
    MBConvConfig,
    efficientnet_b0,
    efficientnet_v2_s,
)

from domain.catalogue import Preprocessing
from models.anatomy import Anatomy, Variant, gather, last_convs, plan_by_stride

TINY = Preprocessing(resize=32, crop=32, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
MAKERS = {"b0": efficientnet_b0, "v2_s": efficientnet_v2_s}
VARIANTS = {
    "efficientnet_b0": Variant(
        summary="mobile blocks scaled together in depth, width and resolution",
        settings={"version": "b0"},
        weights="EfficientNet_B0_Weights.IMAGENET1K_V1",
    ),
    "efficientnet_v2_s": Variant(
        summary="the second version: plain convolutions early, made for quick training; native at 384 pixels",
        settings={"version": "v2_s"},
        weights="EfficientNet_V2_S_Weights.IMAGENET1K_V1",
        resolutions=(96, 128, 160, 192, 224, 300, 384),
    ),
    "tiny_efficientnet": Variant(
        summary="a miniature for tests",
        # expansion, kernel, stride, channels in, channels out, blocks
        settings={"blocks": ((1, 3, 1, 8, 8, 1), (2, 3, 2, 8, 16, 2), (2, 5, 2, 16, 16, 1)), "last_channel": 32},
        preprocessing=TINY,
        resolutions=(32,),
        public=False,
    ),
    "tiny_efficientnet_v2": Variant(
        summary="a miniature for tests",
        settings={
            "fused": ((1, 3, 1, 8, 8, 1), (2, 3, 2, 8, 16, 1)),
            "blocks": ((2, 3, 2, 16, 16, 2),),
            "last_channel": 32,
        },
        preprocessing=TINY,
        resolutions=(32,),
        public=False,
    ),
}


def build(variant: Variant) -> Anatomy:
    if "blocks" in variant.settings:
        blocks = [FusedMBConvConfig(*row) for row in variant.settings.get("fused", ())]
        blocks += [MBConvConfig(*row) for row in variant.settings["blocks"]]
        last = variant.settings["last_channel"]
        model = EfficientNet(blocks, dropout=0.0, stochastic_depth_prob=0.0, last_channel=last)
    else:
        model = MAKERS[variant.settings["version"]](weights=None, stochastic_depth_prob=0.0)
    stages, names = gather(model, plan_by_stride(model.features))
    return Anatomy(
        stages=stages,
        taps=tuple(stages),
        feature_dim=model.classifier[1].in_features,
        names=names,
        head_name="classifier.1",
        head_scope="classifier",
        block_types=(MBConv, FusedMBConv),
        conv_taps=last_convs(stages, stages),
    )
