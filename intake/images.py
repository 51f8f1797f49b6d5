"""One uploaded image: every reason to leave it out, and the picture itself when there is none."""

import io
import warnings

from PIL import Image, UnidentifiedImageError

from domain.errors import Invalid
from intake.limits import Limits
from intake.preprocess.classification import FORMATS, to_rgb

SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
    # Images that are not read: each is listed as such rather than passed over.
    ".svg", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".psd", ".ico", ".dcm", ".raw", ".dng", ".cr2", ".nef", ".tga",
})  # fmt: skip
_MAGICS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*", b"P4", b"P5", b"P6")


def decode(data: bytes, limits: Limits) -> Image.Image:
    """The whole picture as RGB, decoded to its last byte. Invalid("image_…") if it cannot or should not be used."""
    if not data:
        raise Invalid("image_corrupt", "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it can read all the same
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image, limits)
                rgb = to_rgb(image)
                _check_metadata(image, limits)  # a PNG may have text behind its pixels
                return rgb
        except Invalid:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
            raise Invalid("image_too_many_pixels", f"more than {limits.max_pixels} pixels") from None
        except UnidentifiedImageError:
            if data.startswith(_MAGICS):
                raise Invalid("image_corrupt", "the file starts like an image and cannot be read") from None
            raise Invalid("image_unsupported_type", f"not an image of type {', '.join(FORMATS)}") from None
        except Exception as error:  # damaged bytes make Pillow raise nearly anything
            if isinstance(error, ValueError) and ("too large" in str(error) or "Too much memory" in str(error)):
                raise _metadata_too_large(limits) from None
            raise Invalid("image_corrupt", f"cannot be decoded: {str(error)[:200]}") from None


def _check_header(image: Image.Image, limits: Limits) -> None:
    """What can be refused before any pixel is decoded."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise Invalid("image_too_many_pixels", f"{width} x {height} is more than {limits.max_pixels} pixels")
    if max(width, height) > limits.max_aspect * min(width, height):
        raise Invalid("image_aspect", f"{width} x {height}: one side is over {limits.max_aspect:g} times the other")
    if min(width, height) < limits.min_side:
        raise Invalid("image_too_small", f"{width} x {height}: a side is under {limits.min_side} pixels")
    _check_metadata(image, limits)
    # Phones store a preview as the second picture of a JPEG ("MPO"); the first is the photo.
    if image.format != "MPO" and _has_frame(image, limits.max_frames):
        raise Invalid("image_too_many_frames", f"more than {limits.max_frames} frame(s); upload single pictures")


def _has_frame(image: Image.Image, number: int) -> bool:
    if image.format in ("PNG", "WEBP"):
        return int(getattr(image, "n_frames", 1)) > number
    try:
        image.seek(number)  # cheaper than counting: a GIF has to be walked through to be counted
    except EOFError:
        return False
    return True


def _check_metadata(image: Image.Image, limits: Limits) -> None:
    values = [v for v in image.info.values() if isinstance(v, bytes | str)]
    segments = [data for _, data in getattr(image, "applist", ())]
    if max(sum(map(len, values)), sum(map(len, segments))) > limits.max_metadata_bytes:
        raise _metadata_too_large(limits)


def _metadata_too_large(limits: Limits) -> Invalid:
    return Invalid("image_metadata_too_large", f"more than {limits.max_metadata_bytes} bytes of profile, EXIF or text")
