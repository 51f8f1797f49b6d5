"""Small made-up pictures as an upload: noise around a colour and a stripe per class, which a network can learn."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def archive(path: Path, *, n_classes: int, n_per_class: int, side: int, seed: int = 0) -> Path:
    """A zip of class folders with `n_per_class` PNG files of `side` pixels each."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for label in range(n_classes):
            colour = rng.integers(60, 196, 3)
            for number in range(n_per_class):
                picture = rng.normal(colour, 40, (side, side, 3))
                picture[:, (label * side // n_classes) :: max(2, side // 4)] += 50
                file = io.BytesIO()
                Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "PNG")
                target.writestr(f"class{label}/{number:05}.png", file.getvalue())
    return path
