"""Networks before and after surgery, and what the tests of all surgeries do to them."""

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from models.build import build, member
from models.facts import preprocessing_of
from models.network import Network
from transfer.bundle import open_onnx, write_onnx
from transfer.evaluate import PixelNetwork
from transfer.phase import Rebuilt, Site, covers


class Operated(NamedTuple):
    before: Network
    net: Network
    rebuilt: Rebuilt

    @property
    def trained(self) -> set[str]:
        """Names of what a phase that trains everything trains."""
        return {name for name, _ in self.net.named_parameters() if not covers(self.rebuilt.frozen, name)}

    @property
    def added(self) -> dict[str, Tensor]:
        """The weights that were not there before."""
        known = dict(self.before.named_parameters())
        return {name: weight for name, weight in self.net.named_parameters() if name not in known}


@pytest.fixture
def operate() -> Callable[..., Operated]:
    """A miniature in evaluation mode, whose batch norms have seen pictures, with and without a surgery."""

    def made(name: str, backbone: str, *, seed: int = 3, **params: Any) -> Operated:
        part = importlib.import_module(f"transfer.surgery.{name}")
        params = {key: range_.default for key, range_ in part.SPACE.items()} | params
        net = build(backbone, n_classes=3, seed=1)
        rng = torch.Generator().manual_seed(2)
        with torch.no_grad():
            net.train()(torch.randn(8, 3, 32, 32, generator=rng))
        before = copy.deepcopy(net.eval())
        rebuilt = part.rebuild(net, Site(torch.Generator().manual_seed(seed), 3), **params)
        return Operated(before, rebuilt.net.eval(), rebuilt)

    return made


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def shake() -> Callable[[Any], None]:
    """Move every given weight a little, as training would."""

    def moved(weights: Any, by: float = 0.1, seed: int = 5) -> None:
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in weights:
                weight.add_(by * torch.randn(weight.shape, generator=rng))

    return moved


@pytest.fixture
def export_gap(tmp_path: Path) -> Callable[[Network], float]:
    """The largest difference between the logits of torch and those of the exported network."""

    def gap(net: Network) -> float:
        pixel_network = PixelNetwork(net, preprocessing_of(member(net.backbone))).eval()
        write_onnx(pixel_network, tmp_path / "net.onnx", temperature=1.0, size=32, metadata={})
        pixels = np.random.default_rng(6).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
        (found,) = open_onnx(tmp_path / "net.onnx").run(["logits"], {"pixels": pixels})
        with torch.no_grad():
            expected = pixel_network(torch.from_numpy(pixels)).numpy()
        return float(np.abs(found - expected).max())

    return gap
