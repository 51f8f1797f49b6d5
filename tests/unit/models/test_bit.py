"""Group norm and weight standardisation of BiT, each from its formula."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.backbones.bit import StandardisedConv2d, ZeroEdgedMaxPool, standardised
from models.build import build, member
from models.weights import rename, start_from


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_standardised_is_the_formula() -> None:
    weight = drawn(5, 4, 3, 3)
    rows = weight.double().numpy().reshape(5, -1)
    expected = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, ddof=0, keepdims=True) + 1e-10)
    np.testing.assert_allclose(standardised(weight).numpy().reshape(5, -1), expected, rtol=1e-5, atol=1e-6)
    assert standardised(torch.ones(2, 1, 1, 1)).tolist() == [[[[0.0]]], [[[0.0]]]]  # the small number keeps it finite


def test_a_filter_may_be_stretched_and_shifted() -> None:
    conv = StandardisedConv2d(4, 5, 3, bias=False)
    x = drawn(2, 4, 6, 6)
    before = conv(x)
    stretch, shift = drawn(5, 1, 1, 1, seed=1).exp(), drawn(5, 1, 1, 1, seed=2)
    with torch.no_grad():
        conv.weight.mul_(stretch).add_(shift)
    torch.testing.assert_close(conv(x), before, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        conv.weight.neg_()
    torch.testing.assert_close(conv(x), -before, rtol=1e-4, atol=1e-4)


def test_the_slope_of_a_filter_is_orthogonal_to_itself_and_to_constants() -> None:
    conv = StandardisedConv2d(4, 5, 3, bias=False)
    conv(drawn(2, 4, 6, 6)).square().sum().backward()
    slope = conv.weight.grad
    assert slope is not None
    scale = slope.norm() * conv.weight.detach().norm()
    assert float((slope * conv.weight.detach()).sum((1, 2, 3)).abs().max() / scale) < 1e-5
    assert float(slope.sum((1, 2, 3)).abs().max() / slope.norm()) < 1e-5


def test_a_picture_looks_the_same_in_any_batch_and_mode() -> None:
    network = build("tiny_bit", n_classes=3).train()
    x = drawn(5, 3, 32, 32)
    with torch.no_grad():
        together = network(x)
        alone = torch.cat([network(picture[None]) for picture in x])
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
        assert torch.equal(network.eval()(x), together)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (15, 8), (1, 2)])
def test_the_pooling_of_the_stem_sees_zeros_around_the_map(height: int, width: int) -> None:
    x = (drawn(2, 3, height, width) - 1).requires_grad_()
    padded = functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, stride=2)
    pooled = ZeroEdgedMaxPool()(x)
    assert torch.equal(pooled, padded)
    assert not torch.equal(pooled, functional.max_pool2d(x, 3, stride=2, padding=1))
    slopes = [torch.autograd.grad(out.square().sum(), x)[0] for out in (pooled, padded)]
    assert torch.equal(*slopes)


def test_the_exported_pooling_computes_the_same(tmp_path: Path) -> None:
    x = drawn(2, 3, 15, 16) - 2  # below zero nearly everywhere, so that the edge wins
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(ZeroEdgedMaxPool().eval(), (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "pool.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "pool.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.array_equal(got, ZeroEdgedMaxPool()(x).numpy())


def test_logits_by_hand() -> None:
    """The whole network once more, from the weights by name and the formulas alone."""
    network = build("tiny_bit", n_classes=3).eval()
    w = {name: tensor.double() for name, tensor in network.state_dict().items()}

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        kernel = w[f"{name}.weight"]
        rows = kernel.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-10).sqrt()
        return functional.conv2d(x, rows.view_as(kernel), **options)

    def norm(x: Tensor, name: str) -> Tensor:
        grouped = x.reshape(len(x), 4, -1)
        spread = grouped.var(2, unbiased=False, keepdim=True)
        grouped = (grouped - grouped.mean(2, keepdim=True)) / (spread + 1e-5).sqrt()
        x = grouped.view_as(x) * w[f"{name}.weight"].view(1, -1, 1, 1) + w[f"{name}.bias"].view(1, -1, 1, 1)
        return x.clamp(min=0)

    pixels = drawn(2, 3, 32, 32)
    x = functional.pad(conv(pixels.double(), "stem.conv", stride=2, padding=3), (1, 1, 1, 1))
    x = functional.max_pool2d(x, 3, stride=2)
    for block, stride in (("block1.unit01", 1), ("block2.unit01", 2), ("block3.unit01", 2), ("block3.unit02", 1)):
        first = norm(x, f"{block}.gn1")
        turned = f"{block}.downsample.weight" in w
        shortcut = conv(first, f"{block}.downsample", stride=stride) if turned else x
        inner = norm(conv(first, f"{block}.conv1"), f"{block}.gn2")
        inner = norm(conv(inner, f"{block}.conv2", stride=stride, padding=1), f"{block}.gn3")
        x = conv(inner, f"{block}.conv3") + shortcut
    logits = norm(x, "norm.gn").mean((2, 3)) @ w["head.weight"].T + w["head.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(pixels).double(), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_bit", "bit_r50x1"])
def test_names_of_the_public_port_are_known(name: str) -> None:
    with torch.device("meta"):
        own = build(name, n_classes=3).state_dict() if name == "tiny_bit" else None
        depths = member(name).variant.settings["depths"]
    theirs = ["root.conv.weight", "head.gn.weight", "head.gn.bias", "head.conv.weight", "head.conv.bias"]
    for n, depth in enumerate(depths, start=1):
        for k in range(1, depth + 1):
            unit = f"body.block{n}.unit{k:02d}"
            theirs += [f"{unit}.gn{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")]
            theirs += [f"{unit}.conv{i}.weight" for i in (1, 2, 3)]
            theirs += [f"{unit}.downsample.weight"] if k == 1 else []
    backbone, head = rename({key: torch.zeros(3, 1, 1, 1) for key in theirs}, member(name))
    with torch.device("meta"):
        anatomy = member(name).anatomy()
    wanted = {f"{stage}.{key}" for stage, module in anatomy.stages.items() for key in module.state_dict()}
    assert set(backbone) == wanted
    assert own is None or set(own) == wanted | set(head)
    assert {key: tuple(tensor.shape) for key, tensor in head.items()} == {
        "head.weight": (3, 1),  # a 1x1 convolution of pooled features is a linear layer
        "head.bias": (3, 1),
    }


def test_the_head_of_the_public_port_is_read_as_a_linear_layer() -> None:
    own = build("tiny_bit", n_classes=7, seed=4)
    theirs = {key: tensor for key, tensor in own.state_dict().items() if not key.startswith("head.")}
    theirs |= {"head.conv.weight": own.head.state_dict()["weight"][:, :, None, None]}
    theirs |= {"head.conv.bias": own.head.state_dict()["bias"]}
    copied = build("tiny_bit", n_classes=7, seed=5)
    start = start_from(copied, theirs, with_head=True)
    assert start.n_classes == 7
    x = drawn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(copied(x), own(x))
