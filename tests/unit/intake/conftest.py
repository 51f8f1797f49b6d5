"""Generated pictures and archives of them."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Files = Mapping[str, bytes]


def _picture(seed: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Smooth random colours: no two seeds look alike, and every one survives compression and resizing."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def _tar(path: Path, files: Files) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(buffer.getvalue()) if path.suffix == ".tgz" else buffer.getvalue())
    return path


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    return _picture


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return _encode


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """archive(files, "x.zip" | "x.tar" | "x.tgz") -> its path"""

    def build(files: Files, name: str = "upload.zip") -> Path:
        path = tmp_path / name
        return _zip(path, files) if path.suffix == ".zip" else _tar(path, files)

    return build


@pytest.fixture(scope="session")
def folders() -> Callable[..., dict[str, bytes]]:
    """folders({"ants": 10, "bees": 12}) -> files of so many different pictures in class folders"""

    def build(counts: Mapping[str, int], prefix: str = "", seed: int = 0) -> dict[str, bytes]:
        names = [f"{prefix}{label}/{i}.png" for label, n in counts.items() for i in range(n)]
        return {name: _encode(_picture(seed + k)) for k, name in enumerate(names)}

    return build


@pytest.fixture(scope="session")
def real_zips() -> Path:
    """The folder of real datasets beside the repository, where there is one."""
    folder = Path(__file__).parents[3] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the real datasets are not on this machine (../shared/data)")
    return folder
