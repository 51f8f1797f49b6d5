"""How many images a second does the trainer reach, next to a plain PyTorch loop over the same pixels?

Process CPU time, one thread, an epoch of the one and an epoch of the other in turn; both look at `val` after each. In
two of its epochs the trainer looks once more, where trials are compared. The bound is the operations of a step at the
speed of a large matrix product.
"""

import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import bare, bounds
from benchmarks.pictures import archive
from benchmarks.table import Figure, lower_bound, quantile
from domain.catalogue import catalogue
from domain.job import Objective
from domain.lot import LotOrder, SourceFiles, TrialOrder
from domain.recipe import DataTreatment, Optimizer, Recipe
from intake.limits import Limits
from intake.packs import open_pack, pack
from intake.prepare import prepare
from intake.preprocess.classification import scaled
from models.build import build
from transfer.fit import Fit

N_CLASSES = 4
# Backbone, pixels, training images, pairs of epochs. Up to 20 epochs a trial looks at `val` after every one.
CASES = (("resnet18", 64, 256, 15), ("smallnet", 32, 2048, 19))
BATCH = 32
AIM = 0.95


def measure() -> list[Figure]:
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for backbone, resolution, n_images, n_pairs in CASES:
        with tempfile.TemporaryDirectory() as folder:
            figures += _compare(Path(folder), backbone, resolution, n_images, n_pairs)
        gc.collect()
    return figures


def _compare(folder: Path, backbone: str, resolution: int, n_images: int, n_pairs: int) -> list[Figure]:
    pack_folder, classes = packed(folder, backbone, resolution, n_images)
    n_train = int((open_pack(pack_folder).split == 0).sum()) // BATCH * BATCH
    n_epochs = n_pairs + 1
    ours = epochs_of_fit(folder, pack_folder, classes, backbone, resolution, n_epochs)
    theirs = _epochs_of_bare(pack_folder, backbone, n_epochs)
    times = [(_cpu_s(ours), _cpu_s(theirs)) for _ in range(n_epochs)][1:]  # the first pair pays for allocation
    for _ in ours:
        pass
    ratios = [plain / fit for fit, plain in times]
    label, unit = f"{backbone}@{resolution}, batch {BATCH}", "images per CPU-second"
    fit_s, bare_s = (quantile([pair[place] for pair in times], 0.5) for place in (0, 1))
    most = bounds.peak_flops(clock=time.process_time) / bounds.of_training(backbone, resolution)
    return [
        Figure(f"{label}: fit", n_train / fit_s, unit, bound=most),
        Figure(f"{label}: bare loop", n_train / bare_s, unit, bound=most),
        Figure(f"{label}: ratio, median", quantile(ratios, 0.5), "ratio"),
        Figure(f"{label}: ratio, lower 95 % bound", lower_bound(ratios), "ratio", (">=", AIM)),
    ]


def _cpu_s(epochs: Iterator[object]) -> float:
    began = time.process_time()
    next(epochs)
    return time.process_time() - began


def packed(
    folder: Path, backbone: str, resolution: int, n_images: int, n_classes: int = N_CLASSES
) -> tuple[Path, tuple[str, ...]]:
    """A pack of about `n_images` made-up pictures to train on, and some to validate; its classes."""
    upload = archive(
        folder / "upload.zip", n_classes=n_classes, n_per_class=(n_images + 64) // n_classes, side=resolution
    )
    share = n_images / (n_images + 64)
    split = {"train": share, "val": (1 - share) / 2, "test": (1 - share) / 2}
    options: dict[str, object] = {"split": split}
    manifest = prepare(upload, folder / "items.zip", task="classification", options=options, limits=Limits())
    facts = catalogue().backbone(backbone).preprocessing
    canvas, crop = scaled(facts.resize, facts.crop, resolution)
    pack(folder / "items.zip", folder / "pack", resize=canvas, crop=crop, interpolation=facts.interpolation)
    return folder / "pack", manifest.classes


def epochs_of_fit(
    folder: Path, pack_folder: Path, classes: tuple[str, ...], backbone: str, resolution: int, n_epochs: int, *,
    batch_size: int = BATCH, source: Path | None = None, **given: Any,
) -> Iterator[object]:  # fmt: skip
    """A report after every epoch; evaluation pixels and no part in any slot, so that both loops do the same work."""
    n_steps = int((open_pack(pack_folder).split == 0).sum()) // batch_size
    recipe = Recipe(
        task="classification",
        source=f"scratch:{backbone}" if source is None else "src_0",
        backbone=backbone,
        optimizer=Optimizer(lr_head=1e-2, inner_ratio=1.0),
        data=DataTreatment(batch_size=batch_size, resolution=resolution, augmentation=0.0, flip=False),
        steps=n_steps * n_epochs,
    )
    files = SourceFiles(weights=None if source is None else str(source), n_classes=0)
    trial = TrialOrder(trial_id="tr_0", number=0, recipe=recipe, source=files, pack=str(pack_folder))
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    order = LotOrder(
        lot_id="lot_0",
        fence=1,
        trials=(trial,),
        objective=Objective(name="accuracy"),
        n_folds=1,
        classes=classes,
        scratch=str(scratch),
        **given,
    )
    running = Fit(order, stopped=lambda _: "go")
    yield from (report for report in running if report.step % n_steps == 0)
    outcome = running.outcome("tr_0")
    if outcome.state != "COMPLETE":
        raise RuntimeError(f"the trial is {outcome.state}: {outcome.error}")


def _epochs_of_bare(pack_folder: Path, backbone: str, n_epochs: int) -> Iterator[object]:
    data = open_pack(pack_folder)
    margin = (data.canvas - data.crop) // 2
    inner = slice(margin, margin + data.crop)
    pixels, labels = torch.from_numpy(data.pixels[:, inner, inner].copy()), torch.from_numpy(data.labels[:].copy())
    train, val = (torch.from_numpy((data.split[:] == split).nonzero()[0]) for split in (0, 1))
    network: nn.Module = build(backbone, n_classes=len(data.classes), seed=0)
    return bare.train(
        network, pixels[train], labels[train], pixels[val], labels[val], epochs=n_epochs, batch_size=BATCH, lr=1e-2
    )
