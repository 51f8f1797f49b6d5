"""VGG with batch norm (Simonyan & Zisserman 2015), a stage per resolution.

The two hidden layers of its classifier (fc6, fc7) hold pretrained weights, so they are the last stage, `fc`; dropout
between them is left out, since what regularizes a trial is chosen in its recipe.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from models.anatomy import SMALL_PICTURES, Anatomy, Variant, gather, last_convs, plan_by_stride
from models.grid_pool import GridPool

VARIANTS = {
    "vgg16_bn": Variant(
        summary="16 layers in a row with batch norm: large weights, smooth features",
        settings={"layers": cfgs["D"], "grid": 7, "hidden": 4096},
        weights="VGG16_BN_Weights.IMAGENET1K_V1",
    ),
    "vgg19_bn": Variant(
        summary="19 layers in a row with batch norm",
        settings={"layers": cfgs["E"], "grid": 7, "hidden": 4096},
        weights="VGG19_BN_Weights.IMAGENET1K_V1",
    ),
    "tiny_vgg": Variant(
        summary="a miniature for tests",
        settings={"layers": [4, "M", 8, "M", 16, 16, "M", 16, "M"], "grid": 3, "hidden": 32},
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}


def build(variant: Variant) -> Anatomy:
    grid, hidden = variant.settings["grid"], variant.settings["hidden"]
    features = make_layers(list(variant.settings["layers"]), batch_norm=True)
    # The last pooling stands alone, at a resolution of its own without weights: it opens `fc`.
    *plan, _ = plan_by_stride(features).items()
    stages, names = gather(nn.ModuleDict({"features": features}), dict(plan))
    taps = tuple(stages)
    channels = [module for module in features if isinstance(module, nn.Conv2d)][-1].out_channels
    stages["fc"] = nn.Sequential(
        OrderedDict(
            [
                ("pool", features[-1]),
                ("grid", GridPool(grid)),
                ("flatten", nn.Flatten(1)),
                ("0", nn.Linear(channels * grid * grid, hidden)),
                ("1", nn.ReLU()),
                ("3", nn.Linear(hidden, hidden)),
                ("4", nn.ReLU()),
            ]
        )
    )
    for module in nn.ModuleDict(stages).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return Anatomy(
        stages=stages,
        taps=taps,
        feature_dim=hidden,
        names=names | {"classifier.0": "fc.0", "classifier.3": "fc.3"},
        head_name="classifier.6",
        head_scope="classifier.6",
        conv_taps=last_convs(stages, taps),
    )
