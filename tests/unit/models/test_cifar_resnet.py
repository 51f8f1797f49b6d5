"""The networks of He et al. for small pictures, against weights that were trained elsewhere."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.backbones.cifar_resnet import widened
from models.build import build, member
from models.facts import preprocessing_of
from models.weights import load_start, read_weights, rename

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_real = pytest.mark.skipif(not DATA.is_dir(), reason="the real weights lie outside the repository")
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_the_shortcut_takes_every_other_pixel_and_adds_zeros_on_both_sides() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    got = widened(x, stride=2, n_added=2)
    assert got.shape == (1, 4, 2, 2)
    assert got[0, 0].eq(0).all()
    assert got[0, 3].eq(0).all()
    assert got[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert got[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert widened(x, stride=1, n_added=0) is x


@pytest.mark.parametrize(("name", "depth"), [("cifar_resnet20", 20), ("cifar_resnet56", 56)])
def test_depth_counts_convolutions_and_the_head(name: str, depth: int) -> None:
    network = build(name, n_classes=10)
    kernels = [weight for weight in network.parameters() if weight.dim() > 1]
    assert len(kernels) == depth
    maps = network.forward_with_taps(torch.zeros(1, 3, 32, 32))[1]
    assert [tuple(tap.shape[1:]) for tap in maps.values()] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]


@needs_real
@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_resnet56"])
def test_the_public_files_fit_to_the_last_name(name: str) -> None:
    given = read_weights(DATA / "weights" / f"{name}_cifar10.safetensors")[0]
    backbone, head = rename(given, member(name))
    wanted = build(name, n_classes=10).state_dict()
    assert {key: tensor.shape for key, tensor in {**backbone, **head}.items()} == {
        key: tensor.shape for key, tensor in wanted.items()
    }


@needs_real
@pytest.mark.parametrize(("name", "accuracy", "every"), [("cifar_resnet20", 0.81, 2), ("cifar_resnet56", 0.832, 4)])
def test_the_public_weights_classify_small_photos(name: str, accuracy: float, every: int) -> None:
    pixels, labels = photos(name, every)
    network = build(name, n_classes=10).eval()
    load_start(network, DATA / "weights" / f"{name}_cifar10.safetensors", with_head=True)
    with torch.no_grad():
        right = torch.cat([network(chunk).argmax(1) for chunk in pixels.split(100)]) == labels
    error = (accuracy * (1 - accuracy) / len(labels)) ** 0.5  # the figures are those of a larger set of photos
    assert float(right.float().mean()) == pytest.approx(accuracy, abs=2 * error)


def photos(name: str, every: int) -> tuple[Tensor, Tensor]:
    facts = preprocessing_of(member(name))
    pixels, labels = [], []
    with zipfile.ZipFile(DATA / "cifar10_subset.zip") as archive:
        names = sorted(n for n in archive.namelist() if "/test_" in n)
        for entry in names[::every]:
            with Image.open(io.BytesIO(archive.read(entry))) as image:
                pixels.append((np.asarray(image.convert("RGB"), np.float32) / 255 - facts.mean) / facts.std)
            labels.append(CLASSES.index(entry.split("/")[-2]))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float(), torch.tensor(labels)
