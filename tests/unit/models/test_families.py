"""What one family has and no other: tables left out of a state dict, old names in a published file, second heads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import densenet121, squeezenet1_1
from torchvision.models.inception import InceptionAux
from torchvision.models.swin_transformer import ShiftedWindowAttention

from models.backbones.inception import Renormalise
from models.backbones.swin import Attention
from models.build import build, member
from models.network import seeded
from models.weights import load_start, read_weights, rename, start_from

REAL = Path(__file__).parents[4] / "shared" / "data" / "weights"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real weights lie outside the repository")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_attention_of_swin_is_torchvisions_in_numbers_and_slopes() -> None:
    with seeded(1):
        theirs = ShiftedWindowAttention(8, [4, 4], [2, 2], 2)
    ours = Attention(8, [4, 4], [2, 2], 2)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "relative_position_index"})
    x = drawn(2, 8, 8, 8)
    slopes = []
    for attention in (theirs, ours):
        out = attention(x)
        out.square().sum().backward()
        slopes.append((out.detach(), attention.relative_position_bias_table.grad))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_swin_turns_are_views_and_any_size_runs() -> None:
    network = build("tiny_swin", n_classes=3).eval()
    x = drawn(1, 3, 32, 32)
    with torch.no_grad():
        activation = network.prefix(x, 1)
        assert activation.shape == (1, 16, 8, 8)
        turned = network.get_submodule("stage1.channels_last")(activation)
        assert turned.shape == (1, 8, 8, 16)
        assert turned.data_ptr() == activation.data_ptr()
        for side in (20, 36, 52):  # no multiples of the window
            assert network(drawn(1, 3, side, side)).shape == (1, 3)


def test_no_table_of_positions_is_stored() -> None:
    network = build("tiny_swin", n_classes=3)
    assert all(tensor.is_floating_point() for tensor in network.state_dict().values())


def test_pixels_of_inception_lie_between_minus_one_and_one() -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    raw = torch.rand(4, 3, 2, 2)
    given = (raw - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    torch.testing.assert_close(Renormalise()(given), 2 * raw - 1, rtol=1e-5, atol=1e-5)
    assert not Renormalise().state_dict()


def test_the_second_head_of_inception_is_left_out() -> None:
    with torch.device("meta"):
        theirs = {f"AuxLogits.{k}": v for k, v in InceptionAux(768, 5).state_dict().items()}
    assert rename(theirs, member("inception_v3")) == ({}, {})


def test_the_old_names_of_densenet_are_known() -> None:
    with seeded(2):
        theirs = densenet121().state_dict()
    old = {}
    for name, tensor in theirs.items():
        for kind in ("norm", "conv"):
            if "denselayer" in name:
                name = name.replace(f".{kind}1.", f".{kind}.1.").replace(f".{kind}2.", f".{kind}.2.")
        if not name.endswith("num_batches_tracked"):  # that file is older than those counts
            old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    start = start_from(build("densenet121", n_classes=3), old)
    assert torch.equal(
        start.weights["stage2.denseblock2.denselayer12.conv2.weight"],
        theirs["features.denseblock2.denselayer12.conv2.weight"],
    )
    assert start.n_classes == 1000


@needs_real
def test_real_squeezenet_has_torchvisions_features() -> None:
    file = REAL / "squeezenet1_1_in1k.safetensors"
    theirs = squeezenet1_1()
    theirs.load_state_dict(read_weights(file)[0])
    ours = build("squeezenet1_1", n_classes=3).eval()
    start = load_start(ours, file)
    assert start.head is None
    x = drawn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(ours.features(x), theirs.eval().features(x).mean((2, 3)), rtol=1e-4, atol=1e-4)
