"""Hostile and odd images: each is refused with its code, or turned into the picture a person sees."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from domain.errors import Invalid
from intake.images import decode
from intake.limits import Limits

SIZE = (40, 30)
GRADIENT = np.add.outer(np.arange(30) * 4, np.arange(40) * 3).astype(np.uint8)
PHOTO = Image.fromarray(np.stack([GRADIENT, GRADIENT // 2, 255 - GRADIENT], axis=2))


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    ihdr = struct.pack(">2L5B", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr)


def huge_png(side: int) -> bytes:
    rows = zlib.compress(bytes((side // 8 + 1) * min(side, 1000)), 9)
    return png_header(side, side) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def with_chunk(kind: bytes, data: bytes, *, at_end: bool = False) -> bytes:
    png = saved(PHOTO)
    at = png.index(b"IEND") - 4 if at_end else 33
    return png[:at] + chunk(kind, data) + png[at:]


def refuse(data: bytes, code: str, **limits: int) -> None:
    with pytest.raises(Invalid) as caught:
        decode(data, Limits(**limits))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "data",
    [
        b"MZ\x90\0" + bytes(500),
        b"<html><body>no image</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"PK\3\4" + bytes(100),
    ],
)
def test_21_22_other_types_named_jpg(data: bytes) -> None:
    refuse(data, "image_unsupported_type")


@pytest.mark.parametrize("side", [9000, 12_000, 14_000, 50_000])
def test_23_24_too_many_pixels_from_the_header_alone(side: int) -> None:
    refuse(huge_png(side), "image_too_many_pixels")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_25_truncated(format: str, keep: float) -> None:
    data = saved(Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)), format)
    refuse(data[: int(len(data) * keep)], "image_corrupt")


def test_26_empty() -> None:
    refuse(b"", "image_corrupt")


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (40, 2)])
def test_27_too_small(size: tuple[int, int]) -> None:
    refuse(saved(Image.new("RGB", size)), "image_too_small")


@pytest.mark.parametrize("size", [(65_500, 1), (10, 600)])
def test_28_aspect(size: tuple[int, int]) -> None:
    refuse(saved(Image.new("RGB", size)), "image_aspect")


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("n", [2, 300])
def test_29_too_many_frames(format: str, n: int) -> None:
    frames = [Image.new("RGB", (8, 8), (i * 37 % 256, i * 91 % 256, 7)) for i in range(n)]
    refuse(saved(frames[0], format, save_all=True, append_images=frames[1:]), "image_too_many_frames")


def test_29_preview_inside_a_phone_photo_is_no_second_frame() -> None:
    data = saved(PHOTO, "MPO", save_all=True, append_images=[PHOTO.resize((20, 15))])
    assert decode(data, Limits()).size == SIZE


def difference(data: bytes, expected: Image.Image = PHOTO) -> float:
    image = decode(data, Limits())
    assert (image.mode, image.size) == ("RGB", expected.size)
    return float(np.abs(np.asarray(image, float) - np.asarray(expected, float)).max())


@pytest.mark.parametrize(("format", "tolerance"), [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("PPM", 0), ("JPEG", 16)])
def test_30_plain(format: str, tolerance: float) -> None:
    assert difference(saved(PHOTO, format)) <= tolerance


def test_30_cmyk() -> None:
    assert difference(saved(PHOTO.convert("CMYK"), "JPEG", quality=100)) <= 16
    assert difference(saved(PHOTO.convert("CMYK"), "TIFF")) <= 1


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_30_sixteen_bits_keep_their_scale(format: str) -> None:
    grey = Image.fromarray(GRADIENT)
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    assert difference(saved(deep, format), grey.convert("RGB")) == 0


def test_30_floats_in_the_unit_interval() -> None:
    deep = Image.fromarray((GRADIENT / 255).astype(np.float32))
    assert difference(saved(deep, "TIFF"), Image.fromarray(GRADIENT).convert("RGB")) == 0


def test_30_transparency_lies_on_white() -> None:
    clear = PHOTO.copy()
    clear.putalpha(0)
    white = Image.new("RGB", SIZE, "white")
    assert difference(saved(clear), white) == 0
    assert difference(saved(Image.new("LA", SIZE, (0, 0))), white) == 0
    palette = Image.new("P", SIZE, 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert difference(saved(palette, transparency=1), white) == 0
    assert difference(saved(palette, transparency=0), Image.new("RGB", SIZE, (0, 255, 0))) == 0
    assert difference(saved(Image.new("RGB", SIZE, (1, 2, 3)), transparency=(1, 2, 3)), white) == 0
    assert difference(saved(palette, "GIF", transparency=1), white) == 0


def test_30_bilevel_and_grey() -> None:
    assert difference(saved(Image.new("1", SIZE, 1)), Image.new("RGB", SIZE, "white")) == 0
    assert difference(saved(Image.fromarray(GRADIENT)), Image.fromarray(GRADIENT).convert("RGB")) == 0


TURNS = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG", "WEBP"])
def test_30_turned_upright_exactly_once(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = TURNS[orientation]
    upright = PHOTO if turn is None else PHOTO.transpose(turn)
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
    assert difference(saved(PHOTO, format, exif=exif, **options), upright) <= (16 if format == "JPEG" else 0)


def test_30_damaged_exif_does_not_sink_the_picture() -> None:
    assert difference(saved(PHOTO, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")) == 0


@pytest.mark.parametrize(
    ("kind", "at_end"), [(b"zTXt", False), (b"zTXt", True), (b"iTXt", False), (b"iTXt", True), (b"iCCP", False)]
)
def test_31_metadata_that_unpacks(kind: bytes, at_end: bool) -> None:
    middle = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
    refuse(
        with_chunk(kind, b"key" + middle + zlib.compress(bytes(100_000_000), 9), at_end=at_end),
        "image_metadata_too_large",
    )


def test_31_metadata_that_is_simply_large() -> None:
    refuse(saved(PHOTO, icc_profile=b"x" * 60_000), "image_metadata_too_large", max_metadata_bytes=50_000)
    refuse(saved(PHOTO, "JPEG", icc_profile=b"x" * 300_000), "image_metadata_too_large", max_metadata_bytes=200_000)
    refuse(saved(PHOTO, "TIFF", icc_profile=b"x" * 300_000), "image_metadata_too_large", max_metadata_bytes=200_000)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 300_000)
    refuse(saved(PHOTO, pnginfo=text), "image_metadata_too_large", max_metadata_bytes=200_000)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_any_damage_is_refused_or_harmless(format: str) -> None:
    data = saved(PHOTO, format)
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), 3):
            damaged[at] = rng.integers(256)
        with suppress(Invalid):
            assert decode(bytes(damaged), Limits()).mode == "RGB"
