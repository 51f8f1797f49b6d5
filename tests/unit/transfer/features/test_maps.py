"""Resizing and matching of feature maps, against torch's own."""

import pytest
import torch
from torch.nn import functional

from models.build import build
from transfer.maps import max_pooled, pairs, resized, same_size, tried


def test_resizing_is_torchs() -> None:
    x = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    found = resized(x, (4, 6))
    expected = functional.interpolate(x, (4, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(resized(x, (18, 6)), functional.interpolate(x, (18, 6), mode="bilinear"))
    assert resized(x, (9, 6)) is x
    torch.testing.assert_close(resized(torch.ones(1, 1, 7, 7), (3, 2)), torch.ones(1, 1, 3, 2))


def test_both_get_the_smaller_size() -> None:
    one, other = same_size(torch.randn(1, 2, 8, 3), torch.randn(1, 5, 4, 6))
    assert one.shape == (1, 2, 4, 3)
    assert other.shape == (1, 5, 4, 3)


@pytest.mark.parametrize(("old", "new"), [((8, 8), (4, 4)), ((7, 5), (7, 5)), ((9, 6), (3, 2)), ((8, 6), (4, 2))])
def test_pooling_is_torchs_where_sizes_divide(old: tuple[int, int], new: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *old)
    torch.testing.assert_close(max_pooled(x, new), functional.adaptive_max_pool2d(x, new))


def test_pooling_covers_every_pixel_where_they_do_not() -> None:
    for pixel in range(7):
        x = torch.zeros(1, 1, 7, 1)
        x[0, 0, pixel] = 1
        assert max_pooled(x, (3, 1)).shape == (1, 1, 3, 1)
        assert max_pooled(x, (3, 1)).max() == 1


def test_pairs_are_counted_from_the_end() -> None:
    a, b, c = (torch.full((1,), float(n)) for n in range(3))
    assert [(x.item(), y.item()) for x, y in pairs({"p": a, "q": b, "r": c}, {"s": a, "t": b})] == [(1, 0), (2, 1)]
    assert pairs({}, {"s": a}) == []


@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_vit", "tiny_convnext"])
def test_trying_a_network_leaves_it_as_it_was(backbone: str) -> None:
    net = build(backbone, n_classes=3).train()
    net.get_submodule(net.stage_names[0]).eval()
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = tried(net)
    assert list(found) == list(net.taps)
    assert all(maps.ndim == 4 and not maps.requires_grad for maps in found.values())
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
