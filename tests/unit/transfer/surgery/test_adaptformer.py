"""AdaptFormer's branch against a layer written out by hand, and its bookkeeping."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transfer.surgery.adaptformer import branch

BACKBONES = ["tiny_vit", "tiny_swin"]


def test_the_branch_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    y, w_down, b_1, w_up, b_2 = (rng.normal(size=s) for s in ((5, 7, 6), (4, 6), (4,), (6, 4), (6,)))
    expected = np.maximum(y @ w_down.T + b_1, 0) @ w_up.T + b_2
    found = branch(*(torch.from_numpy(a) for a in (y, w_down, b_1, w_up, b_2)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_begins_exactly_as_the_frozen_one(
    operate: Callable[..., Any], backbone: str, pictures: Tensor
) -> None:
    before, net, _ = operate("adaptformer", backbone)
    with torch.no_grad():
        assert torch.equal(net(pictures), before(pictures))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("m", [4, 5])
def test_branches_and_head_are_all_that_trains(operate: Callable[..., Any], backbone: str, m: int) -> None:
    operated = operate("adaptformer", backbone, m=m)
    assert operated.trained == {*operated.added, "head.weight", "head.bias"}
    widths = [next(w for w in operated.before.get_submodule(b).parameters()).shape[0] for b in operated.net.block_names]
    assert sum(w.numel() for w in operated.added.values()) == sum(2 * m * d + d + m for d in widths)


@pytest.mark.parametrize("s", [0.1, 2.0])
def test_it_stands_beside_the_mlp(operate: Callable[..., Any], shake: Callable[..., None], s: float) -> None:
    operated = operate("adaptformer", "tiny_vit", m=4, s=s)
    shake(operated.added.values(), by=0.5)
    block, plain = operated.net.get_submodule("blocks2.1"), operated.before.get_submodule("blocks2.1")
    x = torch.randn(2, 17, 16)
    y = plain.ln_1(x)
    x1 = x + plain.self_attention(y, y, y)[0]
    y1 = plain.ln_2(x1)
    own = block.adaptformer
    beside = torch.relu(y1 @ own.down.weight.T + own.down.bias) @ own.up.weight.T + own.up.bias
    torch.testing.assert_close(block(x), x1 + plain.mlp(y1) + s * beside)


def test_the_first_gradient_reaches_the_upper_matrix_alone(operate: Callable[..., Any], pictures: Tensor) -> None:
    operated = operate("adaptformer", "tiny_vit", m=4)
    operated.net(pictures).square().sum().backward()
    for name, weight in operated.added.items():
        assert (weight.grad.abs().sum() > 0) == (".up." in name), name
