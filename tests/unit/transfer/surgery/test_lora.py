"""LoRA: nothing at the start, the merged network at any time, and the convolution it stands for."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from transfer.surgery.lora import Change

BACKBONES = [
    "tiny_vit", "tiny_swin", "tiny_resnet", "tiny_bit", "tiny_convnext", "tiny_mobilenet_v3", "tiny_efficientnet",
    "tiny_cifar_resnet",
]  # fmt: skip


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_begins_exactly_as_the_frozen_one(
    operate: Callable[..., Any], backbone: str, pictures: Tensor
) -> None:
    before, net, rebuilt = operate("lora", backbone)
    assert rebuilt.new
    with torch.no_grad():
        assert torch.equal(net(pictures), before(pictures))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_is_the_network_with_the_change_merged(
    operate: Callable[..., Any], backbone: str, pictures: Tensor, shake: Callable[..., None]
) -> None:
    rank, alpha = 3, 5.0
    operated = operate("lora", backbone, rank=rank, alpha=alpha)
    shake(operated.added.values())
    with torch.no_grad():
        for path in operated.rebuilt.new:
            owner = operated.before.get_submodule(path.removesuffix(".lora"))
            weight = owner.in_proj_weight if isinstance(owner, nn.MultiheadAttention) else owner.weight
            a, b = (operated.added[f"{path}.{name}"] for name in ("a_weight", "b_weight"))
            assert len(a) == min(rank, len(weight), weight[0].numel())
            weight += (alpha / len(a) * torch.einsum("or,ri->oi", b, a)).reshape(weight.shape)
        torch.testing.assert_close(operated.net(pictures), operated.before(pictures))


def test_every_full_connection_of_a_transformer_block_is_changed(operate: Callable[..., Any]) -> None:
    new = operate("lora", "tiny_vit").rebuilt.new
    inner = ("self_attention", "self_attention.out_proj", "mlp.0", "mlp.3")
    assert [n for n in new if n.startswith("blocks1")] == [f"blocks1.0.{name}.lora" for name in inner]
    assert len(new) == 4 * len(inner)
    windows = operate("lora", "tiny_swin").rebuilt.new
    assert [n for n in windows if n.startswith("stage1.0.")] == [
        f"stage1.0.{name}.lora" for name in ("attn.qkv", "attn.proj", "mlp.0", "mlp.3")
    ]


def test_depthwise_kernels_and_what_lies_outside_the_blocks_are_left_alone(operate: Callable[..., Any]) -> None:
    operated = operate("lora", "tiny_mobilenet_v3")
    blocks = [m for n in operated.before.block_names for m in operated.before.get_submodule(n).modules()]
    assert any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in blocks)
    assert len(operated.rebuilt.new) == sum(isinstance(m, nn.Conv2d) and m.groups == 1 for m in blocks)


@pytest.mark.parametrize("backbone", ["tiny_vit", "tiny_resnet"])
def test_changes_and_head_are_all_that_trains(operate: Callable[..., Any], backbone: str) -> None:
    operated = operate("lora", backbone, rank=2)
    assert operated.trained == {*operated.added, "head.weight", "head.bias"}
    norms = [n for n, m in operated.before.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert set(norms) <= set(operated.rebuilt.frozen)  # with their statistics


def test_it_has_r_times_both_sides_weights(operate: Callable[..., Any]) -> None:
    operated = operate("lora", "tiny_vit", rank=2)
    d, inner = 16, 32
    per_block = 2 * ((d + 3 * d) + (d + d) + 2 * (d + inner))
    assert sum(w.numel() for w in operated.added.values()) == 4 * per_block


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (2, 0)])
def test_on_a_kernel_it_is_a_convolution_down_and_one_up(stride: int, padding: int) -> None:
    torch.manual_seed(0)
    change = Change(torch.Size((6, 4, 3, 3)), rank=2, alpha=3.0)
    nn.init.normal_(change.b_weight)
    x = torch.randn(2, 4, 9, 9)
    down = functional.conv2d(x, change.a_weight.view(2, 4, 3, 3), stride=stride, padding=padding)
    up = functional.conv2d(down, change.b_weight.view(6, 2, 1, 1))
    torch.testing.assert_close(functional.conv2d(x, change(), stride=stride, padding=padding), 3.0 / 2 * up)


def test_rank_and_first_gradient() -> None:
    change = Change(torch.Size((8, 5)), rank=3, alpha=1.0)
    assert change.a_weight.abs().max() <= 1 / math.sqrt(5)
    change().sum().backward()
    assert change.a_weight.grad.abs().sum() == 0  # B is zero
    assert change.b_weight.grad.abs().sum() > 0
    nn.init.normal_(change.b_weight)
    assert torch.linalg.matrix_rank(change()) == 3
    full = Change(torch.Size((8, 5)), rank=64, alpha=1.0)
    assert full.a_weight.shape == (5, 5)
    assert full.scale == 1 / 5


def test_the_gradient_is_that_of_the_two_products(operate: Callable[..., Any], shake: Callable[..., None]) -> None:
    operated = operate("lora", "tiny_vit", rank=2, alpha=4.0)
    shake(operated.added.values())
    linear, plain = operated.net.get_submodule("blocks1.0.mlp.0"), operated.before.get_submodule("blocks1.0.mlp.0")
    a, b = linear.lora.a_weight, linear.lora.b_weight
    x = torch.randn(7, 16)
    own = torch.autograd.grad(linear(x).square().sum(), (a, b))
    by_hand = torch.autograd.grad((plain(x) + 2.0 * (x @ a.T) @ b.T).square().sum(), (a, b))
    torch.testing.assert_close(own, by_hand)
