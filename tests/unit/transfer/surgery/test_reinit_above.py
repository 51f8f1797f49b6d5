"""AnB: what is kept keeps every bit, what is drawn anew has nothing of the source, on every family of backbones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.build import build, members
from transfer.grafting import BATCH_NORM
from transfer.phase import Site
from transfer.surgery.reinit_above import rebuild

MINIATURES = sorted(name for name, entry in members().items() if not entry.variant.public)


@pytest.mark.parametrize("backbone", MINIATURES)
def test_stages_above_depth_are_drawn_anew_and_no_other(operate: Callable[..., Any], backbone: str) -> None:
    before, net, rebuilt = operate("reinit_above", backbone, depth=1)
    assert rebuilt.new == net.stage_names[1:]
    for name, weight in net.named_parameters():
        given = dict(before.named_parameters())[name]
        if name.partition(".")[0] not in rebuilt.new:
            assert torch.equal(weight, given), name
        elif weight.ndim > 1 and not name.endswith("layer_scale"):
            assert not torch.equal(weight, given), name
            assert weight.std() > 0, name
        assert weight.isfinite().all(), name
    for name, module in net.named_modules():
        if isinstance(module, BATCH_NORM) and name.partition(".")[0] in rebuilt.new:
            assert (module.running_mean == 0).all()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0


@pytest.mark.parametrize("backbone", MINIATURES)
def test_nothing_of_what_was_there_is_left_at_depth_zero(shake: Callable[..., None], backbone: str) -> None:
    states = []
    for seed in (1, 2):
        net = build(backbone, n_classes=3, seed=seed)
        shake(net.parameters(), seed=seed)
        rebuild(net, Site(torch.Generator().manual_seed(7), 3), depth=0)
        states.append({n: t for n, t in net.state_dict().items() if not n.startswith("head")})
    assert all(torch.equal(tensor, states[1][n]) for n, tensor in states[0].items())


@pytest.mark.parametrize("depth", [6, 32])
def test_beyond_the_last_stage_only_the_head_is_new(operate: Callable[..., Any], pictures: Tensor, depth: int) -> None:
    before, net, rebuilt = operate("reinit_above", "tiny_vit", depth=depth)
    assert rebuilt.new == ()
    with torch.no_grad():
        assert torch.equal(net(pictures), before(pictures))


def test_the_draws_have_the_spread_of_their_rule(operate: Callable[..., Any]) -> None:
    weights = dict(operate("reinit_above", "tiny_swin", depth=0).net.named_parameters())
    assert weights["stage2.0.attn.relative_position_bias_table"].std().item() == pytest.approx(0.02, rel=0.2)
    qkv = weights["stage2.0.attn.qkv.weight"]  # Glorot: variance 2 / (in + out)
    assert qkv.var().item() == pytest.approx(2 / sum(qkv.shape), rel=0.1)
    kernel = dict(operate("reinit_above", "tiny_resnet", depth=0).net.named_parameters())["layer4.0.conv2.weight"]
    assert kernel.var().item() == pytest.approx(2 / (kernel.shape[0] * 9), rel=0.05)  # He: 2 / (out k k)
