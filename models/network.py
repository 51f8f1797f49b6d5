"""The network every trial trains: ordered stages, features, head."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import isqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from domain.errors import Invalid

HeadKind = Literal["linear", "mlp"]
HEAD = "head"


class Seen(NamedTuple):
    """What a network makes of a batch."""

    logits: Tensor  # (B, C)
    features: dict[str, Tensor]  # by stage: its output as a map (B, c, h, w)
    pooled: Tensor  # (B, D), the input of the head
    convs: dict[str, Tensor]  # by stage: the output of its last convolution, before its batch norm


class Network(nn.Module):
    """A backbone cut into stages, and a head.

    x (B, 3, H, W), normalised -> stage 1 -> ... -> stage n -> features (B, D) -> head -> logits (B, C)

    The state dict calls weights `<stage>.<...>` and `head.<...>`: stages are direct children, `stages` is a view.
    Depth counts stages: after depth 0 lies the input, after depth `n_stages` lie the pooled features.
    """

    def __init__(
        self,
        backbone: str,
        stages: Mapping[str, nn.Module],
        head: nn.Module,
        *,
        feature_dim: int,
        taps: tuple[str, ...],
        block_types: tuple[type[nn.Module], ...] = (),
        conv_taps: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.conv_taps = dict(conv_taps or {})  # stage -> path of its last convolution
        self.stage_names = tuple(stages)
        self.taps = taps
        self.feature_dim = feature_dim
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.head = head
        # Paths such as `layer1.0`, input side first, taken before any surgery; `get_submodule(path)` gives the block.
        self.block_names = tuple(name for name, module in self.named_modules() if isinstance(module, block_types))

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The stages by name, input side first."""
        return {name: self.get_submodule(name) for name in self.stage_names}

    @property
    def n_stages(self) -> int:
        return len(self.stage_names)

    @property
    def n_classes(self) -> int:
        """Width of the logits."""
        last = [module for module in self.head.modules() if isinstance(module, nn.Linear)][-1]
        return last.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.suffix(x, 0)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D), the input of the head."""
        return self.prefix(x, self.n_stages)

    def prefix(self, x: Tensor, n_stages: int, *, begin: int = 0) -> Tensor:
        """What lies after the first `n_stages` stages: 0 is `x` itself, all of them the pooled features (B, D). `x` is
        what lies after the first `begin` of them."""
        self._check_depth(n_stages)
        for name in self.stage_names[begin:n_stages]:
            x = self.get_submodule(name)(x)
        return pool(x) if begin < n_stages == self.n_stages else x

    def suffix(self, activation: Tensor, n_stages: int) -> Tensor:
        """Logits from what `prefix(x, n_stages)` returned."""
        return self.suffix_with_taps(activation, n_stages, ())[0]

    def look(
        self, activation: Tensor, n_stages: int = 0, *, convs: bool = False,
        stages: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> Seen:  # fmt: skip
        """Everything there is to see from what `prefix(x, n_stages)` returned; `convs` only if asked for. `stages`
        stand in for stages of these names."""
        self._check_depth(n_stages)
        with self._listening(n_stages if convs else self.n_stages) as heard:
            features: dict[str, Tensor] = {}
            for name in self.stage_names[n_stages:]:
                stage = (stages or {}).get(name) or self.get_submodule(name)
                activation = stage(activation)
                if name in self.taps:
                    features[name] = as_map(activation)
            pooled = pool(activation)
            return Seen(self.head(pooled), features, pooled, heard)

    @contextmanager
    def _listening(self, n_stages: int) -> Iterator[dict[str, Tensor]]:
        """What the last convolutions of the stages yield, for one forward pass: the hooks go with it."""
        heard: dict[str, Tensor] = {}

        def listen(stage: str) -> Any:
            def note(_: nn.Module, __: Any, output: Tensor) -> None:
                heard[stage] = output

            return note

        paths = [(s, self.conv_taps[s]) for s in self.stage_names[n_stages:] if s in self.conv_taps]
        hooks = [self.get_submodule(path).register_forward_hook(listen(stage)) for stage, path in paths]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

    def forward_with_taps(self, x: Tensor, taps: Iterable[str] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the feature map (B, c, h, w) at each tap (all of them by default), inside the graph."""
        return self.suffix_with_taps(x, 0, taps)

    def suffix_with_taps(
        self, activation: Tensor, n_stages: int, taps: Iterable[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `suffix`, with the taps that lie after the first `n_stages` stages."""
        wanted = set(self.taps if taps is None else taps)
        if unknown := wanted - set(self.taps):
            legal = ", ".join(self.taps)
            raise Invalid("unknown_tap", f"{self.backbone} has no tap {', '.join(sorted(unknown))}; it has {legal}")
        self._check_depth(n_stages)
        maps: dict[str, Tensor] = {}
        for name in self.stage_names[n_stages:]:
            activation = self.get_submodule(name)(activation)
            if name in wanted:
                maps[name] = as_map(activation)
        logits: Tensor = self.head(pool(activation))
        return logits, maps

    def stage_of(self, weight: str) -> str:
        """The stage, `head`, or what surgery has added beside them, that holds a weight of this name."""
        unit = weight.partition(".")[0]
        if unit not in dict(self.named_children()):
            raise KeyError(weight)
        return unit

    def _check_depth(self, n_stages: int) -> None:
        if not 0 <= n_stages <= self.n_stages:
            raise ValueError(f"{self.backbone} has {self.n_stages} stages, not {n_stages}")


def pool(activation: Tensor) -> Tensor:
    """Features (B, D): the mean of a map (B, D, h, w), the class token of tokens (B, 1 + n, D)."""
    if activation.dim() == 4:
        return functional.adaptive_avg_pool2d(activation, 1).flatten(1)
    if activation.dim() == 3:
        return activation[:, 0]
    return activation


def as_map(activation: Tensor) -> Tensor:
    """A map (B, c, h, w); tokens (B, 1 + h * h, c) are laid out without the class token."""
    if activation.dim() == 4:
        return activation
    patches = activation[:, 1:].transpose(1, 2)
    side = isqrt(patches.shape[2])
    return patches.reshape(*patches.shape[:2], side, side)


def new_head(feature_dim: int, n_classes: int, kind: HeadKind = "linear", *, seed: int) -> nn.Module:
    """A fresh head on the CPU, the same for the same seed; the global random state is left alone.

    linear  D -> C
    mlp     D -> 2 D -> ReLU -> C
    """
    if n_classes < 1:
        raise ValueError(f"a head needs at least one class, got {n_classes}")
    with seeded(seed):
        if kind == "linear":
            return nn.Linear(feature_dim, n_classes)
        if kind == "mlp":
            wide = 2 * feature_dim
            return nn.Sequential(nn.Linear(feature_dim, wide), nn.ReLU(), nn.Linear(wide, n_classes))
    raise Invalid("unknown_head", f"there is no head {kind!r}; there are linear, mlp", legal=["linear", "mlp"])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws on the CPU come from `seed` inside; the state before is put back after. CUDA generators are not touched."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
