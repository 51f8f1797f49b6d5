"""The residual networks of He et al. (2016) for 32-pixel pictures: three groups of blocks, shortcuts without weights.

Weight names are those of the usual public implementation (`conv1 bn1 layer1-3 linear`), whose weights want ImageNet's
mean and deviation.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from domain.catalogue import Preprocessing
from models.anatomy import Anatomy, Variant, last_convs

SMALL = Preprocessing(
    resize=32, crop=32, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
WIDTH = 16
VARIANTS = {
    "cifar_resnet20": Variant(
        summary="20 layers for 32-pixel pictures: quick, loads the usual CIFAR-10 weights",
        settings={"depth": 3, "width": WIDTH},
        preprocessing=SMALL,
        min_resolution=16,
        resolutions=(32, 48, 64),
    ),
    "cifar_resnet56": Variant(
        summary="56 layers for 32-pixel pictures: the teacher of cifar_resnet20",
        settings={"depth": 9, "width": WIDTH},
        preprocessing=SMALL,
        min_resolution=16,
        resolutions=(32, 48, 64),
    ),
    "tiny_cifar_resnet": Variant(
        summary="a miniature for tests",
        settings={"depth": 1, "width": 8},
        preprocessing=SMALL,
        min_resolution=16,
        resolutions=(32,),
        public=False,
    ),
}


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and the shortcut of `widened`."""

    def __init__(self, channels: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wide, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.stride = stride
        self.n_added = wide - channels

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + widened(x, self.stride, self.n_added))


def widened(x: Tensor, stride: int, n_added: int) -> Tensor:
    """The shortcut without weights (option A): every `stride`-th pixel, and channels of zeros, half on each side."""
    if stride == 1 and not n_added:
        return x
    before = n_added // 2
    return functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, n_added - before))


def build(variant: Variant) -> Anatomy:
    width: int = variant.settings["width"]
    stem = OrderedDict(
        conv1=nn.Conv2d(3, width, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True)
    )
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(stem)}
    channels = width
    for n in range(3):
        wide = width << n
        first = Block(channels, wide, stride=2 if n else 1)
        rest = [Block(wide, wide, stride=1) for _ in range(1, variant.settings["depth"])]
        stages[f"layer{n + 1}"] = nn.Sequential(first, *rest)
        channels = wide
    for module in nn.ModuleDict(stages).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return Anatomy(
        stages=stages,
        taps=tuple(stages),
        feature_dim=channels,
        names={"conv1": "stem.conv1", "bn1": "stem.bn1"},
        head_name="linear",
        head_scope="linear",
        block_types=(Block,),
        conv_taps=last_convs(stages, stages),
    )
