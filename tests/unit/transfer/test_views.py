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


def test_views_are_distributed_as_stated() -> None:
    """Of 20,000 items in one batch: half are flipped; areas uniform in [0.2, 1], aspects log-uniform about 1, corners
    uniform over where the window fits, brightness and contrast uniform about 1; none of it goes with anything else."""
    canvas, n = 1000, 20_000
    drawn = draw_views(7, 3, np.arange(n), canvas=canvas, crop=900, augmentation=1.0, flip=True)
    assert drawn.flip.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n))
    whole = (drawn.width < canvas) & (drawn.height < canvas)  # not cut at the edge of the canvas
    area, aspect = drawn.width * drawn.height / canvas**2, np.log(drawn.width / drawn.height)
    assert area.min() == pytest.approx(0.2, abs=0.01)
    assert (area < 0.6).mean() == pytest.approx(0.5, abs=0.02)
    assert np.abs(aspect[whole]).max() == pytest.approx(np.log(4 / 3), abs=0.01)
    assert aspect[area < 0.5].mean() == pytest.approx(0, abs=0.01)
    assert aspect[area < 0.5].std() == pytest.approx(np.log(4 / 3) / np.sqrt(3), rel=0.03)
    for corner, side in ((drawn.left, drawn.width), (drawn.top, drawn.height)):
        place = (corner + 0.5) / (canvas - side + 1)
        assert place.mean() == pytest.approx(0.5, abs=0.02)
        assert place[whole].std() == pytest.approx(1 / np.sqrt(12), rel=0.03)
    contrast = 1 - drawn.bias / 127.5
    for factor in (contrast, drawn.gain / contrast):
        assert (factor.min(), factor.max()) == (pytest.approx(0.7, abs=0.01), pytest.approx(1.3, abs=0.01))
        assert factor.std() == pytest.approx(0.3 / np.sqrt(3), rel=0.03)
    columns = np.stack([drawn.flip, area, drawn.gain, drawn.bias, aspect])[:, area < 0.5]
    assert np.abs(np.corrcoef(columns) - np.eye(5))[[0, 0, 0, 1, 1, 4, 4], [1, 2, 3, 2, 3, 0, 1]].max() < 0.05


def test_one_picture_many_times_in_a_batch_is_seen_in_as_many_ways(pack: Path) -> None:
    opened = open_pack(pack)
    alike = replace(opened, pixels=np.repeat(opened.pixels[:1], 32, axis=0))
    found = Pictures(alike, PLAIN, device=torch.device("cpu"), channels_last=True).training(
        np.arange(32), 1, 0, augmentation=0.5, flip=True
    )
    differences = (found[:, None] - found[None]).abs().amax((2, 3, 4))
    assert (differences + torch.eye(32) > 0).all()


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


def test_pictures_live_on_a_device_where_a_quarter_of_what_is_left_holds_them(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the card, or of this process's share of it; there is no card here, so its numbers are made up."""
    size, device = pictures._pixels.nbytes, pictures.device
    card = {"free": 4 * size, "fraction": 1.0, "reserved": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (card["free"], 100 * size))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda number: (card["fraction"],)[number])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: card["reserved"])
    monkeypatch.setattr(pictures, "_copied", lambda: torch.ones(1))
    monkeypatch.setattr(pictures, "device", torch.device("cuda"))

    def is_resident(**given: float) -> bool:
        card.update({"free": 4 * size, "fraction": 1.0, "reserved": 0} | given)
        return pictures._place() is not None

    assert is_resident()
    assert not is_resident(free=4 * size - 4)
    assert is_resident(fraction=0.04)
    assert not is_resident(fraction=0.039)
    assert not is_resident(fraction=0.04, reserved=size)

    def too_late() -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(pictures, "_copied", too_late)
    assert not is_resident(), "another process was faster: pictures are streamed"
    assert device.type == "cpu"


def test_pictures_are_copied_to_a_device_in_pieces(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "COPIED_AT_ONCE", 7)
    assert np.array_equal(pictures._copied().numpy(), pictures._pixels)
