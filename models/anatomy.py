"""What a family of backbones says of itself: facts as data (`Variant`), and the modules built from them (`Anatomy`)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from domain.catalogue import Preprocessing

SMALL_PICTURES = Preprocessing(resize=32, crop=32, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Variant:
    """One member of a family.

    `weights` names a member of a torchvision weights enum (`ResNet18_Weights.IMAGENET1K_V1`); its transforms are then
    the preprocessing. A variant without published weights states its own `preprocessing`.
    A variant that is not `public` is a miniature for tests: it can be built, and stands in no catalogue.
    """

    summary: str
    settings: Mapping[str, Any]
    weights: str | None = None
    preprocessing: Preprocessing | None = None
    min_resolution: int = 32
    fixed_resolution: int | None = None
    resolutions: tuple[int, ...] = (96, 128, 160, 192, 224)
    public: bool = True

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.preprocessing is None):
            raise ValueError("a variant has either published weights or its own preprocessing")


@dataclass(frozen=True)
class Anatomy:
    """The modules of one backbone.

    stages      ordered, input side first; together they hold every weight of the backbone exactly once.
    taps        the stages whose output is a feature map, or tokens that can be laid out as one.
    names       torchvision's prefix -> Graft's prefix, for every module that is called differently there.
    head_name   torchvision's prefix of the last linear layer; None where torchvision has no such network.
    head_scope  torchvision's prefix of everything that may stand in place of the head.
    block_types the residual blocks, which adapters and per-block policies act on.
    left_out    torchvision's prefixes of what has no place here: a second head, tables that are worked out anew.
    conv_taps   tapped stage -> path of its last convolution on the main way, whose output is a map before any norm.
    """

    stages: dict[str, nn.Module]
    taps: tuple[str, ...]
    feature_dim: int
    names: dict[str, str] = field(default_factory=dict)
    head_name: str | None = None
    head_scope: str | None = None
    block_types: tuple[type[nn.Module], ...] = ()
    left_out: tuple[str, ...] = ()
    conv_taps: dict[str, str] = field(default_factory=dict)


def gather(model: nn.Module, plan: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Stages out of a torchvision model, and the renaming that belongs to them.

    `plan` maps a stage to the paths of its modules, which run one after another.
    Each keeps the last word of its path: `features.3` becomes `<stage>.3`.
    """
    stages: dict[str, nn.Module] = {}
    names: dict[str, str] = {}
    for stage, paths in plan.items():
        whole = nn.Sequential()
        for path in paths:
            word = path.rpartition(".")[2]
            whole.add_module(word, model.get_submodule(path))
            names[path] = f"{stage}.{word}"
        stages[stage] = whole
    return stages, names


def plan_by_stride(features: nn.Sequential) -> dict[str, tuple[str, ...]]:
    """A stage per resolution: `stem`, `stage1`, ... each begin where a strided layer halves the map."""
    plan: list[list[str]] = []
    for index, module in enumerate(features):
        strided = any(_strides(part) for part in module.modules())
        if strided or not plan:
            plan.append([])
        plan[-1].append(f"features.{index}")
    return {f"stage{n}" if n else "stem": tuple(paths) for n, paths in enumerate(plan)}


def last_convs(
    stages: Mapping[str, nn.Module], taps: Iterable[str], aside: frozenset[str] = frozenset({"downsample"})
) -> dict[str, str]:
    """Each tapped stage's last convolution, as modules are listed; those below a name in `aside` are shortcuts.

    torchvision lists the modules of a block as they run, shortcuts apart.
    """
    found: dict[str, str] = {}
    for tap in taps:
        for path, module in stages[tap].named_modules():
            if isinstance(module, nn.Conv2d) and aside.isdisjoint(path.split(".")):
                found[tap] = f"{tap}.{path}"
    return found


def _strides(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return max(module.stride) > 1
    return isinstance(module, nn.MaxPool2d)
