"""DenseNet (Huang et al. 2017): every layer reads the maps of all before it. A stage per resolution.

A stage but the stem and the first opens with the transition that halves the map; the last ends with batch norm and
ReLU. The last convolution of a stage adds a few channels to the map: a tap before its norm sees those alone.
"""

from torch import nn
from torchvision.models.densenet import DenseNet

from models.anatomy import SMALL_PICTURES, Anatomy, Variant, gather, last_convs

VARIANTS = {
    "densenet121": Variant(
        summary="121 layers that read all maps before them: few weights, much memory",
        settings={"growth_rate": 32, "block_config": (6, 12, 24, 16), "num_init_features": 64, "bn_size": 4},
        weights="DenseNet121_Weights.IMAGENET1K_V1",
    ),
    "tiny_densenet": Variant(
        summary="a miniature for tests",
        settings={"growth_rate": 4, "block_config": (2, 2, 2), "num_init_features": 8, "bn_size": 2},
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}


def build(variant: Variant) -> Anatomy:
    model = DenseNet(**variant.settings)
    depths: tuple[int, ...] = variant.settings["block_config"]
    plan = {"stem": tuple(f"features.{name}" for name in ("conv0", "norm0", "relu0", "pool0"))}
    for n in range(1, len(depths) + 1):
        transition = (f"features.transition{n - 1}",) if n > 1 else ()
        plan[f"stage{n}"] = (*transition, f"features.denseblock{n}")
    last = f"stage{len(depths)}"
    plan[last] = (*plan[last], "features.norm5")
    stages, names = gather(model, plan)
    stages[last].add_module("relu5", nn.ReLU(inplace=True))
    for n, depth in enumerate(depths, start=1):
        for layer in (f"denseblock{n}.denselayer{k + 1}" for k in range(depth)):
            # The published file still has the dots of an old release: `norm.1` for `norm1`.
            for old in ("norm.1", "conv.1", "norm.2", "conv.2"):
                names[f"features.{layer}.{old}"] = f"stage{n}.{layer}.{old.replace('.', '')}"
    return Anatomy(
        stages=stages,
        taps=tuple(stages),
        feature_dim=model.classifier.in_features,
        names=names,
        head_name="classifier",
        head_scope="classifier",
        conv_taps=last_convs(stages, stages),
    )
