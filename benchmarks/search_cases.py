"""Small datasets on which whole searches are compared: the same pictures and splits for everybody.

A seed draws the split. Few pictures train and about 200 choose, so that what is chosen is not luck and a job ranks as
its rivals do, by log-loss on that split; what is left judges.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.method_run import TEST, TRAIN, VAL
from domain.catalogue import Preprocessing
from intake.limits import Limits
from intake.packs import Pack, open_pack, pack
from intake.prepare import prepare
from intake.preprocess.classification import scaled
from models.build import member
from models.facts import facts_of
from transfer.evaluate import evaluation_pixels

SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}
WEIGHTS, BACKBONE, RESOLUTION = "mobilenet_v2_w035_in1k_features", "mobilenet_v2_w035", 64


@dataclass(frozen=True)
class SearchCase:
    dataset: str
    n_train: int  # per class, and so on
    n_val: int
    n_test: int

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.n_train} per class"


CASES = (
    SearchCase("neu_surface", 5, 34, 100),
    SearchCase("blood_cells", 10, 67, 200),
    SearchCase("hymenoptera", 40, 100, 140),
    SearchCase("cifar10_subset", 20, 20, 300),
)


def folder_of(case: SearchCase, seed: int, data: Path, out: Path) -> Path:
    """Everything a contender may want of one case and seed, made once: see `benchmarks.rivals.task.Task`."""
    folder = out / f"{case.dataset}-{case.n_train}-{seed}"
    if (folder / "data.npz").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_split(data / f"{case.dataset}.zip", folder / "pictures.zip", case, seed)
    prepare(folder / "pictures.zip", folder / "items.zip", task="classification", options={}, limits=Limits())
    native: Preprocessing = facts_of(member(BACKBONE)).preprocessing
    canvas, crop = scaled(native.resize, native.crop, RESOLUTION)
    pack(folder / "items.zip", folder / "pack", resize=canvas, crop=crop, interpolation=native.interpolation)
    export(open_pack(folder / "pack"), folder)
    return folder


def write_split(archive: Path, out: Path, case: SearchCase, seed: int) -> None:
    """The archive with its pictures drawn into train/, val/ and test/."""
    rng = np.random.default_rng(seed)
    classes: dict[str, list[str]] = {}
    with zipfile.ZipFile(archive) as given, zipfile.ZipFile(out, "w") as kept:
        for name in sorted(n for n in given.namelist() if not n.endswith("/")):
            classes.setdefault(name.partition("/")[0], []).append(name)
        for names in classes.values():
            order, start = [names[i] for i in rng.permutation(len(names))], 0
            for split, n in (("train", case.n_train), ("val", case.n_val), ("test", case.n_test)):
                for name in order[start : start + n]:
                    kept.writestr(f"{split}/{name}", given.read(name))
                start += n


def export(content: Pack, folder: Path) -> None:
    """The pack as arrays and as picture files, in one order: split by split, class by class.

    To train from there is the whole canvas, which crops are drawn from; to judge, its centre, as everybody sees it.
    """
    arrays: dict[str, Any] = {}
    for split, rows in rows_of(content):
        pixels = content.pixels[rows] if split == "train" else evaluation_pixels(content, rows)
        arrays |= {f"{split}_pixels": np.asarray(pixels), f"{split}_labels": content.labels[rows]}
        for number, (picture, label) in enumerate(zip(pixels, content.labels[rows], strict=True)):
            file = folder / "pictures" / split / content.classes[label] / f"{number:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
    np.savez(folder / "data.npz", **arrays)


def rows_of(content: Pack) -> Iterator[tuple[str, np.ndarray[tuple[int], np.dtype[np.intp]]]]:
    for split, code in SPLITS.items():
        rows = np.flatnonzero(content.split == code)
        yield split, rows[np.argsort(content.labels[rows], kind="stable")]
