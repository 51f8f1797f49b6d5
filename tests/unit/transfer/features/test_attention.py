"""Attention transfer between maps of different networks: sizes, numbers of taps, tokens. Its closed forms stand in
test_losses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.build import build
from transfer.features import attention
from transfer.features.attention import distance


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*(shape or (5, 7, 3, 4)), generator=torch.Generator().manual_seed(seed))


def step(block_names: tuple[str, ...] = (), **views: dict[str, Tensor]) -> Any:
    seen = {name: SimpleNamespace(features=features) for name, features in views.items()}
    return SimpleNamespace(**seen, net=SimpleNamespace(block_names=block_names))


def test_the_codes_form_is_a_cosine() -> None:
    """beta * 2 / n_pixels * mean_b (1 - cos), summed over the taps."""
    own, given = {"a": maps(0), "b": maps(1, 5, 3, 2, 2)}, {"a": maps(2), "b": maps(3, 5, 9, 2, 2)}
    found = attention.loss(step(student=own, source=given), beta=10.0, mode="code", guide="source")
    expected = sum(
        2 / own[k][0, 0].numel()
        * (1 - functional.cosine_similarity(own[k].pow(2).sum(1).flatten(1), given[k].pow(2).sum(1).flatten(1))).mean()
        for k in own
    )  # fmt: skip
    torch.testing.assert_close(found, 10.0 * expected)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_it_is_blind_to_scale_and_order_of_channels(mode: str) -> None:
    one, two = maps(0), maps(1)
    shuffled = 3.7 * two[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(distance(one, shuffled, mode=mode), distance(one, two, mode=mode))
    assert distance(one, one, mode=mode) == 0


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_taps_are_matched_from_the_last_backwards(mode: str) -> None:
    own = {"s1": maps(0), "s2": maps(1), "s3": maps(2)}
    its = {"layer7": maps(3), "layer8": maps(4)}
    found = attention.loss(step(student=own, teacher=its), beta=1.0, mode=mode, guide="teacher")
    expected = distance(own["s2"], its["layer7"], mode=mode) + distance(own["s3"], its["layer8"], mode=mode)
    torch.testing.assert_close(found, expected)


def test_the_stem_of_a_residual_network_stays_out() -> None:
    own, its = {"stem": maps(0), "layer1": maps(1)}, {"stem": maps(2), "layer1": maps(3)}
    found = attention.loss(step(("layer1.0",), student=own, source=its), beta=1.0, mode="code", guide="source")
    torch.testing.assert_close(found, distance(own["layer1"], its["layer1"], mode="code"))


def test_the_larger_attention_map_is_interpolated() -> None:
    large, small = maps(0, 5, 7, 9, 9), maps(1, 5, 3, 4, 4)
    shrunk = functional.interpolate(large.square().sum(1, keepdim=True), (4, 4), mode="bilinear", antialias=True)
    cosine = functional.cosine_similarity(shrunk.flatten(1), small.square().sum(1).flatten(1))
    for one, two in ((large, small), (small, large)):
        torch.testing.assert_close(distance(one, two, mode="code"), 2 / 16 * (1 - cosine).mean())
    assert distance(torch.ones(2, 3, 9, 5), torch.ones(2, 6, 4, 4), mode="paper") == pytest.approx(0, abs=1e-6)


def test_the_guide_gets_no_gradient() -> None:
    own, given = maps(0).requires_grad_(), maps(1).requires_grad_()
    attention.loss(step(student={"a": own}, source={"b": given}), beta=1.0, mode="code", guide="source").backward()
    assert own.grad is not None
    assert given.grad is None


@pytest.mark.parametrize(("student", "teacher"), [("tiny_vit", "tiny_resnet"), ("tiny_resnet", "tiny_vit")])
def test_tokens_and_maps_guide_each_other(student: str, teacher: str) -> None:
    one, two = build(student, n_classes=3, seed=1).eval(), build(teacher, n_classes=3, seed=2).eval()
    x = maps(0, 2, 3, 32, 32)
    with torch.no_grad():
        its = two.look(x).features
    found = attention.loss(step(student=one.look(x).features, teacher=its), beta=1.0, mode="code", guide="teacher")
    found.backward()
    assert found > 0
    first = one.get_submodule(one.stage_names[1])
    assert all(w.grad is not None for w in first.parameters())
