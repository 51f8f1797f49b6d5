"""Evaluation pixels of an image: short side to `resize`, centre crop of `crop`, as the pretrained weights expect.

This one file makes the pixels wherever they are made: in the packs, in the check of the export, and in the bundle,
which carries a copy of it. It needs numpy and Pillow alone.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def load_rgb(file: str | Path | BinaryIO) -> Image.Image:
    """The picture as a person sees it: first frame, upright, 8 bits a channel, transparency on white."""
    with Image.open(file, formats=FORMATS) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """`load_rgb` of an image that is already open."""
    image.load()  # every byte is decoded here; a TIFF also turns itself upright here
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def evaluation_pixels(image: Image.Image, resize: int, crop: int, interpolation: str) -> Pixels:
    """(crop, crop, 3): what torchvision's `Resize(resize)` and `CenterCrop(crop)` make of it, bit for bit."""
    pixels = canvas(image, resize, crop, interpolation)  # (P, P, 3)
    start = (len(pixels) - crop) // 2
    return np.ascontiguousarray(pixels[start : start + crop, start : start + crop])


def canvas(image: Image.Image, resize: int, crop: int, interpolation: str) -> Pixels:
    """(P, P, 3): the evaluation crop in its exact centre and around it what training views may also show."""
    if interpolation not in _FILTERS:
        raise ValueError(f"there is no interpolation {interpolation!r}; there are {', '.join(_FILTERS)}")
    image = _short_side_to(image, resize, _FILTERS[interpolation])
    margin = canvas_side(resize, crop) - crop >> 1
    # round() halves to even, as torchvision's CenterCrop does.
    left, top = (round((side - crop) / 2) - margin for side in image.size)
    side = crop + 2 * margin
    return np.array(image.crop((left, top, left + side, top + side)), dtype=np.uint8)


def canvas_side(resize: int, crop: int) -> int:
    """P: the largest side up to `resize` that leaves the same margin on both sides of the crop."""
    if not 0 < crop <= resize:
        raise ValueError(f"need 0 < crop <= resize, got crop={crop}, resize={resize}")
    return crop + (resize - crop) // 2 * 2


def scaled(resize: int, crop: int, resolution: int) -> tuple[int, int]:
    """The same preprocessing at another resolution: (P, resolution), margins in proportion, P - resolution even."""
    margin = round((resize - crop) / 2 * resolution / crop) if resolution != crop else (resize - crop) // 2
    return resolution + 2 * margin, resolution


def _short_side_to(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    width, height = image.size
    tall = height >= width
    target = (size, int(size * height / width)) if tall else (int(size * width / height), size)
    return image if target == image.size else image.resize(target, resample)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block may raise anything; the picture itself is whole
        return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits. Whole numbers count to 65535; real numbers to 1, or to 255 if any is above 1."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    top = 65535.0 if image.mode != "F" else 1.0 if values.max(initial=0.0) <= 1 else 255.0
    return Image.fromarray(np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8), mode="L")
