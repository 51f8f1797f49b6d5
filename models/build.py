"""From a backbone's name to a network with fresh weights."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple

import torch

from domain.errors import Invalid
from models import backbones
from models.anatomy import Anatomy, Variant
from models.network import HeadKind, Network, new_head, seeded


class Member(NamedTuple):
    """A registered backbone: its family, its facts, and the family's builder."""

    family: str
    name: str
    variant: Variant
    module: Any

    def anatomy(self) -> Anatomy:
        built: Anatomy = self.module.build(self.variant)
        return built


@cache
def members() -> dict[str, Member]:
    """Every backbone by name, the miniatures for tests included; each file of `models/backbones` is one family."""
    found: dict[str, Member] = {}
    for _, family, _ in sorted(iter_modules(backbones.__path__), key=lambda entry: entry.name):
        module = import_module(f"{backbones.__name__}.{family}")
        for name, variant in module.VARIANTS.items():
            if name in found:
                raise ValueError(f"{name} is registered by {found[name].family} and by {family}")
            found[name] = Member(family, name, variant, module)
    return found


def member(name: str) -> Member:
    """One registered backbone; Invalid("unknown_backbone") with the legal names otherwise."""
    known = members()
    if name not in known:
        legal = sorted(other for other, entry in known.items() if entry.variant.public)
        raise Invalid("unknown_backbone", f"there is no backbone {name!r}; there are {', '.join(legal)}", legal=legal)
    return known[name]


@cache
def outline(backbone: str) -> Anatomy:
    """The anatomy without memory for weights, to be looked at. Making one takes a tenth of a second."""
    with torch.device("meta"):
        return member(backbone).anatomy()


def build(name: str, *, n_classes: int, head: HeadKind = "linear", seed: int = 0) -> Network:
    """A network on the CPU with fresh weights, the same for the same seed; the global random state is left alone.

    The head is drawn on its own, so one seed gives one head whatever weights the backbone is then given.
    """
    entry = member(name)
    with seeded(seed):
        anatomy = entry.anatomy()
    return Network(
        name,
        anatomy.stages,
        new_head(anatomy.feature_dim, n_classes, head, seed=seed),
        feature_dim=anatomy.feature_dim,
        taps=anatomy.taps,
        block_types=anatomy.block_types,
        conv_taps=anatomy.conv_taps,
    )
