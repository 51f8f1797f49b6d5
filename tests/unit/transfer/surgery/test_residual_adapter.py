"""Residual adapters: exact at the start, the middle tap of a kernel or a layer behind it, and the bookkeeping."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transfer.surgery.residual_adapter import Parallel, Series

BACKBONES = [
    "tiny_resnet", "tiny_mobilenet_v2", "tiny_mobilenet_v3", "tiny_efficientnet", "tiny_smallnet", "tiny_vgg",
    "tiny_densenet", "tiny_inception", "tiny_cifar_resnet",
]  # fmt: skip


def spatial(net: nn.Module) -> dict[str, nn.Conv2d]:
    return {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}


@pytest.mark.parametrize("mode", ["parallel", "series"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_network_begins_exactly_as_the_frozen_one(
    operate: Callable[..., Any], backbone: str, mode: str, pictures: Tensor
) -> None:
    before, net, rebuilt = operate("residual_adapter", backbone, mode=mode)
    assert set(rebuilt.new) == {f"{n}.adapter" for n in spatial(before)}
    with torch.no_grad():
        assert torch.equal(net(pictures), before(pictures))


@pytest.mark.parametrize("mode", ["parallel", "series"])
@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_mobilenet_v3", "tiny_vgg"])
def test_adapters_batch_norms_and_head_are_all_that_trains(
    operate: Callable[..., Any], backbone: str, mode: str
) -> None:
    operated = operate("residual_adapter", backbone, mode=mode)
    norms = {
        f"{path}.{name}" for path, module in operated.before.named_modules() if isinstance(module, nn.BatchNorm2d)
        for name in ("weight", "bias")
    }  # fmt: skip
    assert operated.trained == {*operated.added, *norms, "head.weight", "head.bias"}


@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_mobilenet_v3"])
def test_an_adapter_has_a_tap_of_weights(operate: Callable[..., Any], backbone: str) -> None:
    kernels = spatial(operate("residual_adapter", backbone).before).values()
    one_tap = sum(c.weight.numel() // (c.kernel_size[0] * c.kernel_size[1]) for c in kernels)
    parallel = operate("residual_adapter", backbone, mode="parallel")
    assert sum(w.numel() for w in parallel.added.values()) == one_tap
    series = operate("residual_adapter", backbone, mode="series")
    expected = sum(c.out_channels**2 // c.groups + 2 * c.out_channels for c in kernels)
    assert sum(w.numel() for w in series.added.values()) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 7, "padding": 3, "stride": 2},
        {"kernel_size": 3, "padding": 0, "stride": 2},
        {"kernel_size": (1, 7), "padding": (0, 3)},
        {"kernel_size": 5, "padding": 2, "stride": 4, "groups": 2},
        {"kernel_size": 3, "padding": 1, "groups": 4},
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "padding": 3, "stride": 2},
    ],
)
def test_a_parallel_adapter_is_another_middle_tap(given: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, bias=False, **given)
    adapter = Parallel(conv)
    nn.init.normal_(adapter.conv.weight)
    x = torch.randn(2, 4, 11, 14)
    with torch.no_grad():
        found = conv(x) + adapter(x)
        middle = tuple((k - 1) // 2 for k in conv.kernel_size)
        conv.weight[:, :, middle[0], middle[1]] += adapter.conv.weight[:, :, 0, 0]
        torch.testing.assert_close(found, conv(x))


def test_a_series_adapter_is_a_residual_layer() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    adapter = Series(conv)
    nn.init.normal_(adapter.conv.weight)
    z = torch.randn(5, 4, 6, 6)
    normed = (z - z.mean((0, 2, 3), keepdim=True)) / (z.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    expected = z + torch.einsum("oc,bchw->bohw", adapter.conv.weight[:, :, 0, 0], normed)
    torch.testing.assert_close(adapter(z), expected)


def test_what_is_tapped_of_a_convolution_has_its_adapter_in_it(
    operate: Callable[..., Any], shake: Callable[..., None], pictures: Tensor
) -> None:
    operated = operate("residual_adapter", "tiny_resnet")
    shake(operated.added.values())
    with torch.no_grad():
        own, given = operated.net.look(pictures, convs=True), operated.before.look(pictures, convs=True)
    assert not torch.equal(own.convs["stem"], given.convs["stem"])
    bn = operated.before.get_submodule("stem.bn1")
    torch.testing.assert_close(
        nn.functional.max_pool2d(torch.relu(bn(own.convs["stem"])), 3, 2, 1), own.features["stem"]
    )
