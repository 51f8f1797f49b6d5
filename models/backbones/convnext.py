"""ConvNeXt (Liu et al. 2022): a patch stem, four groups of blocks, and the layer norm of the pooled features.

Stochastic depth is off: what regularizes a trial is chosen in its recipe, and a resumed trial repeats itself.
"""

from torch import nn
from torchvision.models.convnext import CNBlock, CNBlockConfig, ConvNeXt, convnext_tiny

from models.anatomy import SMALL_PICTURES, Anatomy, Variant, gather, last_convs

VARIANTS = {
    "convnext_tiny": Variant(
        summary="a convolutional network in the manner of a transformer: the most accurate here, and slow",
        settings={},
        weights="ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
    ),
    "tiny_convnext": Variant(
        summary="a miniature for tests",
        settings={"blocks": ((8, 16, 1), (16, 24, 1), (24, 32, 2), (32, None, 1))},  # channels in, out, blocks
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}
PLAN = {
    "stem": ("features.0",),
    "stage1": ("features.1",),
    "stage2": ("features.2", "features.3"),
    "stage3": ("features.4", "features.5"),
    "stage4": ("features.6", "features.7"),
}


def build(variant: Variant) -> Anatomy:
    if "blocks" in variant.settings:
        blocks = [CNBlockConfig(*row) for row in variant.settings["blocks"]]
        model = ConvNeXt(blocks, stochastic_depth_prob=0.0)
    else:
        model = convnext_tiny(weights=None, stochastic_depth_prob=0.0)
    stages, names = gather(model, PLAN)
    taps = tuple(stages)
    stages["norm"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), model.classifier[0], nn.Flatten(1))
    names["classifier.0"] = "norm.1"
    return Anatomy(
        stages=stages,
        taps=taps,
        feature_dim=model.classifier[2].in_features,
        names=names,
        head_name="classifier.2",
        head_scope="classifier",
        block_types=(CNBlock,),
        conv_taps=last_convs(stages, taps),
    )
