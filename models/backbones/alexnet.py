"""AlexNet (Krizhevsky et al. 2012; the one-tower form of 2014), a stage per resolution.

The two hidden layers of its classifier (fc6, fc7) hold pretrained weights, so they are the last stage, `fc`; dropout
between them is left out, since what regularizes a trial is chosen in its recipe.
"""

from collections import OrderedDict

from torch import nn

from models.anatomy import SMALL_PICTURES, Anatomy, Variant, gather, last_convs, plan_by_stride
from models.grid_pool import GridPool

VARIANTS = {
    "alexnet": Variant(
        summary="five convolutions and two hidden layers: the network of the early transfer literature",
        settings={
            # channels, kernel, stride, padding; "M" halves the map
            "layers": ((64, 11, 4, 2), "M", (192, 5, 1, 2), "M", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "M"),
            "grid": 6,
            "hidden": 4096,
        },
        weights="AlexNet_Weights.IMAGENET1K_V1",
        min_resolution=63,
    ),
    "tiny_alexnet": Variant(
        summary="a miniature for tests",
        settings={
            "layers": ((8, 5, 2, 2), "M", (16, 3, 1, 1), "M", (16, 3, 1, 1), (16, 3, 1, 1), "M"),
            "grid": 2,
            "hidden": 32,
        },
        preprocessing=SMALL_PICTURES,
        resolutions=(32,),
        public=False,
    ),
}


def build(variant: Variant) -> Anatomy:
    grid, hidden = variant.settings["grid"], variant.settings["hidden"]
    features = nn.Sequential()
    channels = 3
    for row in variant.settings["layers"]:
        if row == "M":
            features.append(nn.MaxPool2d(3, stride=2))
        else:
            wide, kernel, stride, padding = row
            features.append(nn.Conv2d(channels, wide, kernel, stride=stride, padding=padding))
            features.append(nn.ReLU())  # not in place: the convolution's own output can be tapped
            channels = wide
    # The last pooling stands alone, at a resolution of its own without weights: it opens `fc`.
    *plan, _ = plan_by_stride(features).items()
    stages, names = gather(nn.ModuleDict({"features": features}), dict(plan))
    taps = tuple(stages)
    stages["fc"] = nn.Sequential(
        OrderedDict(
            [
                ("pool", features[-1]),
                ("grid", GridPool(grid)),
                ("flatten", nn.Flatten(1)),
                ("1", nn.Linear(channels * grid * grid, hidden)),
                ("2", nn.ReLU()),
                ("4", nn.Linear(hidden, hidden)),
                ("5", nn.ReLU()),
            ]
        )
    )
    return Anatomy(
        stages=stages,
        taps=taps,
        feature_dim=hidden,
        names=names | {"classifier.1": "fc.1", "classifier.4": "fc.4"},
        head_name="classifier.6",
        head_scope="classifier.6",
        conv_taps=last_convs(stages, taps),
    )
