"""Does a dataset have to fit into memory? A million pictures of 32 pixels and a hundred thousand of 160 are packed and
trained on in control groups that have a quarter of the pack's bytes, page cache included.

Nothing of the pack is in memory when the limited training begins; the one it is compared with runs without a limit, on
the same pack, which has been read once and stays in memory. Both take the same steps: views of randomly drawn items.
`python -m benchmarks larger`; needs Linux, and the right to make a control group.
"""

import hashlib
import io
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import bounds
from benchmarks.groups import group
from benchmarks.table import Figure
from domain.catalogue import catalogue
from domain.dataset import N_FOLDS, Item, Manifest, Split, Statistics
from domain.job import Objective
from domain.lot import LotOrder, SourceFiles, TrialOrder
from domain.recipe import DataTreatment, Optimizer, Recipe
from intake.prepared import Writer, member
from intake.preprocess.classification import scaled
from transfer.fit import Fit

ROOT = Path(__file__).parent.parent
BACKBONE = "smallnet"
CLASSES = ("class0", "class1", "class2", "class3")
N_DISTINCT, N_VAL, N_TEST = 400, 1000, 100
BATCH = 64
SHARE = 0.25  # of the pack's bytes that a process may use
N_THREADS = os.cpu_count() or 1
MB, UNLIMITED = 10**6, 1 << 50


@dataclass(frozen=True)
class Case:
    n_images: int
    side: int
    n_steps: int

    def __str__(self) -> str:
        return f"{self.n_images} images @{self.side}"


CASES = (Case(1_000_000, 32, 500), Case(100_000, 160, 200))


def measure() -> list[Figure]:
    figures: list[Figure] = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            figures += _figures(case, Path(folder))
    return figures


def _figures(case: Case, folder: Path) -> list[Figure]:
    write_items(folder / "items.zip", case)
    _forget(folder / "items.zip")
    n_bytes = case.n_images * case.side**2 * 3
    limit = int(SHARE * n_bytes)
    facts = catalogue().backbone(BACKBONE).preprocessing
    canvas, crop = scaled(facts.resize, facts.crop, case.side)
    packing = [
        "-m", "intake", "pack", str(folder / "items.zip"), str(folder / "pack"),
        "--resize", str(canvas), "--crop", str(crop), "--interpolation", facts.interpolation,
    ]  # fmt: skip
    with group("packing", limit) as packed:
        began = time.perf_counter()
        packed.run([sys.executable, *packing], cwd=ROOT, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
        packing_s = time.perf_counter() - began
        packing_peak = packed.peak_bytes
    (folder / "items.zip").unlink()
    pixels = folder / "pack" / "pixels.npy"
    (folder / "order.json").write_text(order(case, folder).model_dump_json())
    training = [sys.executable, "-m", "benchmarks.larger", str(folder / "order.json")]
    _forget(pixels)
    with group("training", limit) as limited:
        slow = json.loads(limited.run(training, cwd=ROOT, env=os.environ))
        training_peak = limited.peak_bytes
    _read(pixels)
    with group("unlimited", UNLIMITED) as unlimited:
        fast = json.loads(unlimited.run(training, cwd=ROOT, env=os.environ))
    if slow["value"] != fast["value"]:
        raise RuntimeError("the limit changed what was learnt")
    n_seen = case.n_steps * BATCH
    torch.set_num_threads(N_THREADS)
    most = bounds.peak_flops() / bounds.of_training(BACKBONE, case.side)
    return [
        Figure(f"{case}: pack", n_bytes / MB, "MB"),
        Figure(f"{case}: limit of the group", limit / MB, "MB"),
        Figure(f"{case}: packing", packing_s, "s"),
        Figure(f"{case}: packing, rate", case.n_images / packing_s, "images/s"),
        Figure(f"{case}: packing, peak with page cache, share of the pack", packing_peak / n_bytes, "", ("<=", SHARE)),
        Figure(f"{case}: packing, peak without page cache", packed.anon_bytes / MB, "MB"),
        Figure(f"{case}: training, items seen", n_seen / case.n_images, "of the pack"),
        Figure(f"{case}: training, accuracy", slow["value"], "", (">=", 0.9)),
        Figure(f"{case}: training, peak with page cache, share of the pack", training_peak / n_bytes, "",
               ("<=", SHARE)),
        Figure(f"{case}: training, peak without page cache", limited.anon_bytes / MB, "MB"),
        Figure(f"{case}: training, limited", n_seen / slow["seconds"], "images/s", bound=most),
        Figure(f"{case}: training, all in memory", n_seen / fast["seconds"], "images/s", bound=most),
        Figure(f"{case}: training, limited over all in memory", fast["seconds"] / slow["seconds"], "ratio"),
    ]  # fmt: skip


def write_items(path: Path, case: Case) -> None:
    """A prepared dataset, each of a few pictures under many ids."""
    pictures = [_picture(case.side, n) for n in range(N_DISTINCT)]
    items = []
    with Writer(path) as writer:
        for n in range(case.n_images):
            item_id = hashlib.sha256(str(n).encode()).hexdigest()
            split = Split.VAL if n < N_VAL else Split.TEST if n < N_VAL + N_TEST else Split.TRAIN
            writer.add(item_id, pictures[n % N_DISTINCT])
            items.append(Item.model_construct(
                id=item_id, path=f"{n % len(CLASSES)}/{n}.jpg", member=member(item_id), label=n % len(CLASSES),
                split=split, fold=-1 if split == Split.TEST else n % N_FOLDS, width=case.side, height=case.side,
            ))  # fmt: skip
        items.sort(key=lambda item: item.id)
        sides = (case.side,) * 5
        statistics = Statistics(
            n_items=len(items), n_classes=len(CLASSES), per_split={}, per_class={}, width_quantiles=sides,
            height_quantiles=sides,
        )  # fmt: skip
        writer.finish(Manifest.model_construct(
            task="classification", layout="folders", classes=CLASSES, items=tuple(items), statistics=statistics,
            content_hash="0" * 64,
        ))  # fmt: skip


def _picture(side: int, n: int) -> bytes:
    """Noise, and a stripe whose place says the class."""
    pixels = np.random.default_rng(n).normal(100, 25, (side, side, 3))
    width = side // len(CLASSES)
    pixels[(n % len(CLASSES)) * width :][:width] += 90
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
    return file.getvalue()


def order(case: Case, folder: Path) -> LotOrder:
    recipe = Recipe(
        task="classification", source=f"scratch:{BACKBONE}", backbone=BACKBONE, steps=case.n_steps,
        optimizer=Optimizer(lr_head=1e-2, inner_ratio=1.0), batch_norm="train",
        data=DataTreatment(batch_size=BATCH, resolution=case.side, augmentation=0.2, flip=False),
    )  # fmt: skip
    trial = TrialOrder(
        trial_id="tr_0", number=0, recipe=recipe, source=SourceFiles(weights=None), pack=str(folder / "pack")
    )
    return LotOrder(
        lot_id="lot_0", fence=1, trials=(trial,), objective=Objective(name="accuracy"), n_folds=1, classes=CLASSES,
        scratch=str(folder / "scratch"), n_threads=N_THREADS, prefetch=N_THREADS > 1,
    )  # fmt: skip


def train(path: Path) -> dict[str, float]:
    """Carry an order out: the part that runs in a control group."""
    lot = LotOrder.model_validate_json(path.read_text())
    began = time.perf_counter()
    fit = Fit(lot, stopped=lambda _: "go")
    for _ in fit:
        pass
    seconds = time.perf_counter() - began
    outcome = fit.outcome("tr_0")
    if outcome.state != "COMPLETE" or outcome.value is None:
        raise RuntimeError(f"the trial is {outcome.state}: {outcome.error}")
    return {"seconds": seconds, "value": outcome.value}


def _forget(path: Path) -> None:
    """Nothing of a file stays in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]))))
