"""Evaluation pixels against torchvision's own transforms, bit for bit."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intake.preprocess.classification import canvas, canvas_side, evaluation_pixels, load_rgb, scaled

SIZES = [(160, 120), (120, 160), (97, 97), (224, 224), (256, 256), (33, 301), (301, 34), (500, 375), (8, 8), (255, 257)]
NATIVE = [(256, 224), (232, 224), (236, 224), (224, 224), (72, 64), (235, 224), (33, 28)]


def reference(image: Image.Image, resize: int, crop: int, interpolation: str) -> np.ndarray:
    from torchvision import transforms

    mode = transforms.InterpolationMode(interpolation)
    steps = transforms.Compose(
        [transforms.Resize(resize, interpolation=mode, antialias=True), transforms.CenterCrop(crop)]
    )
    return np.asarray(steps(image))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize(("resize", "crop"), NATIVE)
def test_equals_torchvision(resize: int, crop: int, interpolation: str, picture: Callable[..., Image.Image]) -> None:
    for seed, size in enumerate(SIZES):
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
        for image in (picture(seed, size), Image.fromarray(noise)):
            expected = reference(image, resize, crop, interpolation)
            assert np.array_equal(evaluation_pixels(image, resize, crop, interpolation), expected), size


@pytest.mark.parametrize(
    "name", ["ResNet18", "ResNet50", "MobileNet_V3_Large", "EfficientNet_B0", "ConvNeXt_Tiny", "ViT_B_16"]
)
def test_equals_the_transforms_published_with_the_weights(name: str, picture: Callable[..., Image.Image]) -> None:
    from torchvision import models
    from torchvision.transforms.functional import to_tensor

    transform = models.get_weight(f"{name}_Weights.DEFAULT").transforms()
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (transform.mean, transform.std))
    resize, crop = transform.resize_size[0], transform.crop_size[0]
    for seed, size in enumerate(SIZES):
        image = picture(seed, size)
        pixels = evaluation_pixels(image, resize, crop, transform.interpolation.value)
        ours = (to_tensor(pixels).numpy() - mean) / std
        assert np.array_equal(ours, transform(image).numpy()), size


def test_crop_is_the_exact_centre_of_the_canvas(picture: Callable[..., Image.Image]) -> None:
    for (resize, crop), (seed, size) in itertools.product(NATIVE, enumerate(SIZES)):
        whole = canvas(picture(seed, size), resize, crop, "bilinear")
        side, start = canvas_side(resize, crop), (canvas_side(resize, crop) - crop) // 2
        assert whole.shape == (side, side, 3)
        assert (side - crop) % 2 == 0
        assert side in (resize, resize - 1)
        inner = whole[start : start + crop, start : start + crop]
        assert np.array_equal(inner, reference(picture(seed, size), resize, crop, "bilinear"))


def test_canvas_holds_the_whole_short_side(picture: Callable[..., Image.Image]) -> None:
    image = picture(0, (300, 200))
    resized = np.asarray(image.resize((int(256 * 300 / 200), 256), Image.Resampling.BILINEAR))
    assert np.array_equal(canvas(image, 256, 224, "bilinear"), resized[:, 64 : 64 + 256])


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (236, 224), (224, 224)])
def test_scaled_is_exact_at_native_and_even_elsewhere(resize: int, crop: int) -> None:
    assert scaled(resize, crop, crop) == (resize, crop)
    for resolution in range(8, 600):
        side, same = scaled(resize, crop, resolution)
        assert same == resolution
        assert (side - resolution) % 2 == 0
        assert abs(side - resolution * resize / crop) <= 1
        assert canvas_side(side, resolution) == side


def test_scaled_worked_by_hand() -> None:
    assert scaled(256, 224, 112) == (128, 112)
    assert scaled(256, 224, 64) == (74, 64)  # margin 32 / 224 * 64 / 2 = 4.57, rounded to 5
    assert scaled(224, 224, 160) == (160, 160)


@pytest.mark.parametrize(("resize", "crop"), [(100, 101), (10, 0)])
def test_a_crop_that_does_not_fit_is_refused(resize: int, crop: int) -> None:
    with pytest.raises(ValueError, match="need 0 < crop <= resize"):
        canvas_side(resize, crop)


def test_photo_loads_as_pillow_converts_it(picture: Callable[..., Image.Image], encode: Callable[..., bytes]) -> None:
    data = encode(picture(3), "JPEG")
    assert np.array_equal(load_rgb(io.BytesIO(data)), Image.open(io.BytesIO(data)).convert("RGB"))


def test_file_stands_alone() -> None:
    """It is copied into bundles: nothing of ours is imported, only numpy and Pillow."""
    source = (Path(__file__).parents[3] / "intake/preprocess/classification.py").read_text("utf-8")
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"numpy", "PIL", "pathlib", "typing"}
