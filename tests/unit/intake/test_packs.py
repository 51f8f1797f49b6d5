import io
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intake.packs import open_pack, pack
from intake.prepare import prepare
from intake.prepared import read_manifest
from intake.preprocess.classification import evaluation_pixels, load_rgb


@pytest.fixture
def files(picture: Callable[..., Image.Image], encode: Callable[..., bytes]) -> dict[str, bytes]:
    sizes = [(50, 40), (30, 61), (36, 36), (20, 90)]
    return {
        f"{label}/{i}.{format.lower()}": encode(picture(40 * k + i, sizes[i % 4]), format)
        for k, label in enumerate(["ants", "bees"])
        for i, format in enumerate(["PNG", "JPEG", "WEBP", "TIFF", "BMP"] * 7)
    }


@pytest.fixture
def items(files: dict[str, bytes], archive: Callable[..., Path], tmp_path: Path) -> Path:
    prepare(archive(files), tmp_path / "items.zip", task="classification", options={})
    return tmp_path / "items.zip"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(36, 32), (32, 32), (37, 32)])
def test_centre_of_every_canvas_is_the_evaluation_crop(
    resize: int, crop: int, interpolation: str, items: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    pack(items, tmp_path / "pack", resize=resize, crop=crop, interpolation=interpolation)
    built, manifest = open_pack(tmp_path / "pack"), read_manifest(items)
    assert built.pixels.shape == (70, built.canvas, built.canvas, 3)
    assert built.pixels.dtype == np.uint8
    start = (built.canvas - crop) // 2
    for pixels, item in zip(built.pixels, manifest.items, strict=True):
        expected = evaluation_pixels(load_rgb(io.BytesIO(files[item.path])), resize, crop, interpolation)
        assert np.array_equal(pixels[start : start + crop, start : start + crop], expected)
    assert built.ids.astype(str).tolist() == [item.id for item in manifest.items]
    assert built.labels.tolist() == [item.label for item in manifest.items]
    assert [("train", "val", "test")[k] for k in built.split] == [item.split for item in manifest.items]
    assert built.fold.tolist() == [item.fold for item in manifest.items]
    assert (built.classes, built.content_hash) == (("ants", "bees"), manifest.content_hash)
    assert (built.labels.dtype, built.split.dtype, built.fold.dtype) == (np.int64, np.int8, np.int8)


def test_number_of_threads_changes_nothing(items: Path, tmp_path: Path) -> None:
    for n in (1, 3):
        pack(items, tmp_path / f"pack{n}", resize=36, crop=32, interpolation="bilinear", n_threads=n)
    names = [path.name for path in sorted((tmp_path / "pack1").iterdir())]
    assert names == ["fold.npy", "ids.npy", "labels.npy", "pack.json", "pixels.npy", "split.npy"]
    assert all((tmp_path / "pack1" / n).read_bytes() == (tmp_path / "pack3" / n).read_bytes() for n in names)


def test_pack_that_is_there_is_left_alone(items: Path, tmp_path: Path) -> None:
    pack(items, tmp_path / "pack", resize=36, crop=32, interpolation="bilinear")
    before = (tmp_path / "pack/pixels.npy").stat()
    pack(items, tmp_path / "pack", resize=36, crop=32, interpolation="bilinear")
    assert (tmp_path / "pack/pixels.npy").stat() == before


def _build(items: Path, folder: Path, start: "multiprocessing.synchronize.Barrier") -> None:
    start.wait()
    pack(items, folder, resize=36, crop=32, interpolation="bilinear", n_threads=1)


def test_two_processes_at_once_both_succeed(items: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
    barrier = context.Barrier(2)
    workers = [context.Process(target=_build, args=(items, tmp_path / "packs/p", barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [path.name for path in (tmp_path / "packs").iterdir()] == ["p"]
    assert len(open_pack(tmp_path / "packs/p").labels) == 70


def test_pack_with_its_ids_among_the_facts_opens(items: Path, tmp_path: Path) -> None:
    pack(items, tmp_path / "pack", resize=36, crop=32, interpolation="bilinear")
    ids = open_pack(tmp_path / "pack").ids
    facts = json.loads((tmp_path / "pack/pack.json").read_text())
    (tmp_path / "pack/pack.json").write_text(json.dumps(facts | {"ids": ids.astype(str).tolist()}))
    (tmp_path / "pack/ids.npy").unlink()
    assert np.array_equal(open_pack(tmp_path / "pack").ids, ids)


def test_failure_leaves_nothing_behind(items: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there are nearest, bilinear, bicubic, lanczos"):
        pack(items, tmp_path / "packs/p", resize=36, crop=32, interpolation="sharp")
    assert not list((tmp_path / "packs").iterdir())
