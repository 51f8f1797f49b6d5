"""Houlsby's adapters against a layer written out by hand, and their bookkeeping."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import Tensor, nn

from transfer.surgery.adapter import Adapter, bottleneck

BACKBONES = ["tiny_vit", "tiny_swin"]


def test_the_bottleneck_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    x, w_down, b_1, w_up, b_2 = (rng.normal(size=s) for s in ((5, 7, 6), (4, 6), (4,), (6, 4), (6,)))
    inner = x @ w_down.T + b_1
    expected = (inner * 0.5 * (1 + erf(inner / np.sqrt(2)))) @ w_up.T + b_2
    found = bottleneck(*(torch.from_numpy(a) for a in (x, w_down, b_1, w_up, b_2)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_begins_as_the_frozen_one(operate: Callable[..., Any], backbone: str, pictures: Tensor) -> None:
    before, net, _ = operate("adapter", backbone, m=64)
    with torch.no_grad():
        gap = (net(pictures) - before(pictures)).abs().max()
    assert 0 < gap < 1e-4


def test_the_draw_is_a_cut_normal(operate: Callable[..., Any]) -> None:
    added = operate("adapter", "tiny_vit", m=256).added
    kernels = torch.cat([w.flatten() for n, w in added.items() if n.endswith("weight")])
    # The standard deviation of a standard normal cut at two of them is 0.8796.
    assert kernels.abs().max() <= 2e-3
    assert kernels.std().item() == pytest.approx(0.8796e-3, rel=0.03)
    assert all((b == 0).all() for n, b in added.items() if n.endswith("bias"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_adapters_layer_norms_and_head_are_all_that_trains(operate: Callable[..., Any], backbone: str) -> None:
    operated = operate("adapter", backbone, m=4)
    norms = {
        f"{path}.{name}" for path, module in operated.before.named_modules() if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters()
    }  # fmt: skip
    assert operated.trained == {*operated.added, *norms, "head.weight", "head.bias"}
    assert "norm.weight" in norms


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("m", [4, 5])
def test_each_layer_gets_two_of_2md_d_m_weights(operate: Callable[..., Any], backbone: str, m: int) -> None:
    operated = operate("adapter", backbone, m=m)
    widths = [next(w for w in operated.before.get_submodule(b).parameters()).shape[0] for b in operated.net.block_names]
    assert sum(w.numel() for w in operated.added.values()) == sum(2 * (2 * m * d + d + m) for d in widths)


def test_it_stands_before_both_residual_adds(operate: Callable[..., Any], shake: Callable[..., None]) -> None:
    operated = operate("adapter", "tiny_vit", m=4)
    shake(operated.added.values(), by=0.5)
    block, plain = operated.net.get_submodule("blocks2.1"), operated.before.get_submodule("blocks2.1")
    x = torch.randn(2, 17, 16)
    y = plain.ln_1(x)
    x1 = x + block.adapter_attention(plain.self_attention(y, y, y)[0])
    expected = x1 + block.adapter_mlp(plain.mlp(plain.ln_2(x1)))
    torch.testing.assert_close(block(x), expected)


def test_it_stands_before_both_residual_adds_of_a_shifted_window(
    operate: Callable[..., Any], shake: Callable[..., None]
) -> None:
    operated = operate("adapter", "tiny_swin", m=4)
    shake(operated.added.values(), by=0.5)
    block, plain = operated.net.get_submodule("stage1.1"), operated.before.get_submodule("stage1.1")
    x = torch.randn(2, 8, 8, 16)
    x1 = x + block.adapter_attention(plain.attn(plain.norm1(x)))
    expected = x1 + block.adapter_mlp(plain.mlp(plain.norm2(x1)))
    torch.testing.assert_close(block(x), expected)


def test_the_skip_is_inside() -> None:
    adapter = Adapter(6, 4)
    nn.init.zeros_(adapter.up.weight)
    x = torch.randn(3, 6)
    assert torch.equal(adapter(x), x)
