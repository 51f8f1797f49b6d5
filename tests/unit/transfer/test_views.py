"""Training views: reproducible item by item, centred on evaluation pixels, right about geometry."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from domain.catalogue import Preprocessing
from intake.packs import open_pack
from transfer import views
from transfer.evaluate import evaluation_pixels
from transfer.views import Pictures, draw_views, uniforms

PLAIN = Preprocessing(resize=36, crop=32, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
ITEMS = np.array([4, 0, 17, 31])


@pytest.fixture(scope="module")
def pictures(pack: Path) -> Pictures:
    return Pictures(open_pack(pack), PLAIN, device=torch.device("cpu"), channels_last=True)


def test_evaluation_pixels_are_those_of_the_report(pictures: Pictures, pack: Path) -> None:
    pixels = evaluation_pixels(open_pack(pack), ITEMS).astype(np.float64)
    expected = (pixels / 255 - np.array(PLAIN.mean)) / np.array(PLAIN.std)
    found = pictures.evaluation(ITEMS)
    assert found.shape == (4, 3, 32, 32)
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def test_strength_zero_is_evaluation_pixels_flipped_or_not(pictures: Pictures) -> None:
    plain = pictures.evaluation(ITEMS)
    assert torch.equal(pictures.training(ITEMS, 1, 0, augmentation=0.0, flip=False), plain)
    flipped = pictures.training(ITEMS, 1, 0, augmentation=0.0, flip=True)
    for view, picture in zip(flipped, plain, strict=True):
        assert torch.equal(view, picture) or torch.equal(view, picture.flip(-1))


def test_a_view_depends_on_seed_epoch_and_item_alone(pictures: Pictures) -> None:
    batch = pictures.training(ITEMS, 7, 3, augmentation=1.0, flip=True).clone()
    pictures.training(np.arange(20), 8, 1, augmentation=1.0, flip=True)
    alone = pictures.training(ITEMS[2:3], 7, 3, augmentation=1.0, flip=True)
    assert torch.equal(batch[2:3], alone)
    for seed, epoch in ((8, 3), (7, 4)):
        assert not torch.equal(alone, pictures.training(ITEMS[2:3], seed, epoch, augmentation=1.0, flip=True))


def test_items_of_a_batch_are_cropped_apart() -> None:
    drawn = draw_views(0, 0, np.arange(64), canvas=36, crop=32, augmentation=1.0, flip=True)
    assert len(set(zip(drawn.left.tolist(), drawn.top.tolist(), drawn.width.tolist(), strict=True))) > 50


@given(st.integers(0, 2**63), st.integers(0, 10_000), st.floats(0.01, 1), st.integers(8, 300))
def test_windows_lie_inside_the_canvas_and_cover_what_the_strength_allows(
    seed: int, epoch: int, strength: float, canvas: int
) -> None:
    drawn = draw_views(seed, epoch, np.arange(50), canvas=canvas, crop=canvas // 2, augmentation=strength, flip=False)
    assert (drawn.left >= 0).all() and (drawn.left + drawn.width <= canvas).all()  # noqa: PT018
    assert (drawn.top >= 0).all() and (drawn.top + drawn.height <= canvas).all()  # noqa: PT018
    area = drawn.width * drawn.height / canvas**2
    assert (area >= (1 - 0.8 * strength) * 0.8 - 3 / canvas).all()  # 0.8: stretched windows are cut at the canvas
    assert not drawn.flip.any()


def test_the_hash_is_uniform_and_its_columns_unrelated() -> None:
    u = uniforms(123, 5, np.arange(20_000), 3)
    counts = np.histogram(u[:, 0], bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared of 19 degrees of freedom
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.03
    assert np.abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03


def test_cutting_on_a_device_shows_the_same_windows(pictures: Pictures) -> None:
    """Two resamplers, one geometry: they differ by interpolation alone."""
    drawn = draw_views(3, 1, ITEMS, canvas=36, crop=32, augmentation=0.6, flip=True)
    assert drawn.flip.any()
    one = pictures.training(ITEMS, 3, 1, augmentation=0.6, flip=True).clone()
    two = pictures._cut_on_device(ITEMS, drawn)
    assert two.shape == one.shape
    assert (one - two).abs().mean() < 0.02
    assert (one.flip(-1) - two).abs().mean() > 0.2


def test_more_contrast_leaves_black_black(pack: Path) -> None:
    """Numbers below zero are cut off; their absolute value would turn black grey."""
    opened = open_pack(pack)
    dark = replace(opened, pixels=np.zeros_like(opened.pixels))
    drawn = draw_views(5, 0, np.arange(40), canvas=36, crop=32, augmentation=1.0, flip=False)
    assert drawn.bias.min() < -20
    pictures = Pictures(dark, PLAIN, device=torch.device("cpu"), channels_last=True)
    found = pictures._cut(np.arange(40), drawn, jitter=True)
    expected = np.clip(drawn.bias, 0, 255)  # of a pixel of 0
    assert np.abs(found - expected[:, None, None, None]).max() <= 0.5 + 1e-6


def test_pictures_are_copied_to_a_device_in_pieces(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "COPIED_AT_ONCE", 7)
    assert np.array_equal(pictures._copied().numpy(), pictures._pixels)
