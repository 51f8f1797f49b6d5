"""StochNorm: each channel is normalised one way or the other, plain batch norm at both ends and at evaluation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transfer.surgery.stochnorm import StochNorm2d, choose

X = torch.randn(8, 5, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1


def norm(kind: type[nn.BatchNorm2d], p: float | None = None) -> Any:
    made = kind(5).train()
    rng = torch.Generator().manual_seed(1)
    state = made.state_dict()
    for name in ("weight", "bias", "running_mean"):
        state[name].normal_(generator=rng)
    state["running_var"].uniform_(0.5, 2.0, generator=rng)
    if p is not None:
        made.p = p
    return made


def test_each_channel_is_normalised_by_one_of_the_two() -> None:
    torch.manual_seed(0)  # both ways happen
    ours = norm(StochNorm2d, 0.5)
    mean, var, gamma, beta = (t.detach().clone() for t in (ours.running_mean, ours.running_var, ours.weight, ours.bias))
    found = ours(X)
    batch = (X - X.mean((0, 2, 3), keepdim=True)) / (X.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    running = (X - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + 1e-5).sqrt()
    by_batch, by_running = (gamma.view(1, -1, 1, 1) * z + beta.view(1, -1, 1, 1) for z in (batch, running))
    ways = set()
    for c in range(5):
        is_batch, is_running = (torch.allclose(found[:, c], way[:, c], atol=1e-5) for way in (by_batch, by_running))
        assert is_batch != is_running
        ways.add(is_batch)
    assert ways == {True, False}


def test_without_running_channels_it_is_batch_norm() -> None:
    ours, plain = norm(StochNorm2d, 0.0), norm(nn.BatchNorm2d)
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    ours(x).square().sum().backward()
    plain(y).square().sum().backward()
    assert torch.equal(ours(X), plain(X))
    assert torch.equal(x.grad, y.grad)


def test_with_running_channels_alone_it_is_batch_norm_at_evaluation_whose_statistics_move() -> None:
    ours, plain, moved = norm(StochNorm2d, 1.0), norm(nn.BatchNorm2d).eval(), norm(nn.BatchNorm2d)
    moved(X)
    assert torch.equal(ours(X), plain(X))
    assert torch.equal(ours.running_mean, moved.running_mean)
    assert torch.equal(ours.running_var, moved.running_var)


def test_the_share_of_channels_is_p() -> None:
    torch.manual_seed(0)
    wide = StochNorm2d(4000).train()
    wide.p = 0.3
    x = torch.randn(4, 4000, 1, 1)
    by_running = (wide(x) - x / (1 + 1e-5) ** 0.5).abs().amax((0, 2, 3)) < 1e-6
    assert by_running.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_choose() -> None:
    found = choose(torch.tensor([True, False]), torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1))
    assert found.flatten().tolist() == [1.0, 0.0]


def test_names_stay_and_evaluation_is_plain_batch_norm(operate: Callable[..., Any], pictures: Tensor) -> None:
    before, net, rebuilt = operate("stochnorm", "tiny_mobilenet_v3", p=0.7)
    assert before.state_dict().keys() == net.state_dict().keys()
    assert (rebuilt.new, rebuilt.frozen) == ((), ())
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(type(m) is StochNorm2d and m.p == 0.7 and m.draws_at_random for m in norms)
    with torch.no_grad():
        assert torch.equal(net(pictures), before(pictures))
        assert not torch.equal(net.train()(pictures), net(pictures))  # another draw, and statistics that have moved
