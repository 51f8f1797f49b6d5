"""A network after surgery has an ONNX form that predicts the same, at any batch size."""

from collections.abc import Callable
from typing import Any

import pytest

from models.network import Network
from transfer.parts import names

SMALLEST = {
    "adapter": ("tiny_vit", {"m": 4}),
    "adaptformer": ("tiny_vit", {"m": 4}),
    "lora": ("tiny_vit", {"rank": 2}),
    "reinit_above": ("tiny_smallnet", {"depth": 2}),
    "residual_adapter": ("tiny_smallnet", {"mode": "series"}),
    "spottune": ("tiny_cifar_resnet", {}),
    "stochnorm": ("tiny_smallnet", {}),
}


def test_every_surgery_is_here() -> None:
    assert set(SMALLEST) == set(names("surgery"))


@pytest.mark.parametrize("name", SMALLEST)
def test_it_is_exported(
    operate: Callable[..., Any], name: str, shake: Callable[..., None], export_gap: Callable[[Network], float]
) -> None:
    backbone, params = SMALLEST[name]
    net = operate(name, backbone, **params).net
    shake(net.parameters())
    assert export_gap(net) < 1e-4
