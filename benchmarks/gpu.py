"""One card: images a second of full fine-tuning next to a bare compiled loop, and how many trials it is best shared by.

Nothing is measured where there is no CUDA device. `python -m benchmarks.gpu DEVICE BACKBONE PIXELS IMAGES BATCH PAIRS`
runs the same elsewhere and small, to see that it works.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty
from typing import NamedTuple

import torch
from torch import nn

from benchmarks import bare, bounds
from benchmarks.table import Figure, lower_bound, quantile, render
from benchmarks.trainer import epochs_of_fit, packed
from intake.packs import open_pack
from models.build import build
from models.weights import save_weights

AIM = 0.95
PACKINGS = (1, 2, 4, 8)  # trials that share the card
PATIENCE_S = 300.0  # with trials that share it; one that fails says nothing


class Case(NamedTuple):
    device: str = "cuda"
    backbone: str = "resnet50"
    resolution: int = 224
    n_images: int = 2048
    batch_size: int = 64
    n_pairs: int = 15

    def __str__(self) -> str:
        return f"{self.backbone}@{self.resolution}, batch {self.batch_size}, bf16"


def measure() -> list[Figure]:
    case = Case()
    if torch.cuda.is_available():
        return measure_on(case)
    why = {"why": "no CUDA device"}
    return [
        Figure(f"{case}: ratio to the bare compiled loop, lower 95 % bound", None, "ratio", (">=", AIM), why),
        *(Figure(f"{case}: {n} trials on the card", None, "images/s", None, why) for n in PACKINGS),
    ]


def measure_on(case: Case) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder, case)
        return _beside_bare(folder, case) + _shared(folder, case)


def _prepare(folder: Path, case: Case) -> None:
    packed(folder, case.backbone, case.resolution, case.n_images)
    # A source, as every job has one: what is trained from scratch is never compiled.
    save_weights(build(case.backbone, n_classes=2, seed=1).state_dict(), folder / "source.safetensors", {})


def _beside_bare(folder: Path, case: Case) -> list[Figure]:
    n_epochs = case.n_pairs + 2
    n_train = _n_train(folder, case)
    ours, theirs = _ours(folder, case, n_epochs, "one"), _theirs(folder, case, n_epochs)
    times = [(_seconds(ours, case), _seconds(theirs, case)) for _ in range(n_epochs)][2:]  # the first ones compile
    for _ in ours:
        pass
    fit_s, bare_s = (quantile([pair[place] for pair in times], 0.5) for place in (0, 1))
    ratios = [plain / fit for fit, plain in times]
    most = bounds.peak_flops(torch.bfloat16, device=case.device) / bounds.of_training(case.backbone, case.resolution)
    return [
        Figure(f"{case}: fit", n_train / fit_s, "images/s", bound=most),
        Figure(f"{case}: bare compiled loop", n_train / bare_s, "images/s", bound=most),
        Figure(f"{case}: ratio, median", quantile(ratios, 0.5), "ratio"),
        Figure(f"{case}: ratio to the bare compiled loop, lower 95 % bound", lower_bound(ratios), "ratio", (">=", AIM)),
    ]


def _shared(folder: Path, case: Case) -> list[Figure]:
    """Several trials on the card at once, each in a process of its own, as workers hold them."""
    if case.device != "cpu":
        torch.cuda.empty_cache()  # the card is theirs
    rates = {n: _rate_of(folder, case, n) for n in PACKINGS}
    best = max(rates, key=lambda n: rates[n] or 0.0)
    return [
        *(Figure(f"{case}: {n} trials on the card", rate, "images/s") for n, rate in rates.items()),
        Figure(f"{case}: the best number of trials on the card", best, "trials"),
    ]


def _rate_of(folder: Path, case: Case, n: int) -> float | None:
    """Images a second of `n` trials at once; None where they do not fit onto the card."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(n), context.Queue()
    children = [context.Process(target=_one_of, args=(folder, case, f"{n}-{k}", barrier, queue)) for k in range(n)]
    for child in children:
        child.start()
    try:
        return float(sum(queue.get(timeout=PATIENCE_S) for _ in children))
    except Empty:
        return None
    finally:
        for child in children:
            child.terminate()
            child.join()


def _one_of(folder: Path, case: Case, name: str, barrier: Barrier, queue: "multiprocessing.Queue[float]") -> None:
    """Images a second of one of several trials, while all of them train."""
    n_measured = max(2, case.n_pairs // 3)
    epochs = _ours(folder, case, 2 + n_measured, name)
    for _ in range(2):
        next(epochs)
    barrier.wait(PATIENCE_S / 2)
    seconds = sum(_seconds(epochs, case) for _ in range(n_measured))
    queue.put(n_measured * _n_train(folder, case) / seconds)
    for _ in epochs:
        pass


def _ours(folder: Path, case: Case, n_epochs: int, name: str) -> Iterator[object]:
    return epochs_of_fit(
        folder / name, folder / "pack", tuple(open_pack(folder / "pack").classes), case.backbone, case.resolution,
        n_epochs, batch_size=case.batch_size, source=folder / "source.safetensors", device=case.device,
        precision="bfloat16", paces=str(folder / "paces"), prefetch=case.device != "cpu",
    )  # fmt: skip


def _theirs(folder: Path, case: Case, n_epochs: int) -> Iterator[object]:
    """Everything on the card, channels last, compiled as a whole."""
    data = open_pack(folder / "pack")
    margin = (data.canvas - data.crop) // 2
    inner = slice(margin, margin + data.crop)
    pixels = torch.from_numpy(data.pixels[:, inner, inner].copy()).to(case.device)
    labels = torch.from_numpy(data.labels[:].copy())
    train, val = (torch.from_numpy((data.split[:] == split).nonzero()[0]) for split in (0, 1))
    network: nn.Module = build(case.backbone, n_classes=len(data.classes), seed=0)
    return bare.train(
        network.to(memory_format=torch.channels_last), pixels[train.to(case.device)], labels[train],
        pixels[val.to(case.device)], labels[val], epochs=n_epochs, batch_size=case.batch_size, lr=1e-2,
        device=case.device, autocast=torch.bfloat16, compiled=True,
    )  # fmt: skip


def _seconds(epochs: Iterator[object], case: Case) -> float:
    """Of the next epoch, val included: it ends when predictions are on the host."""
    began = time.perf_counter()
    next(epochs)
    if case.device != "cpu":
        torch.cuda.synchronize(case.device)
    return time.perf_counter() - began


def _n_train(folder: Path, case: Case) -> int:
    return int((open_pack(folder / "pack").split == 0).sum()) // case.batch_size * case.batch_size


if __name__ == "__main__":
    device, backbone, *sizes = sys.argv[1:]
    print(render({"gpu": measure_on(Case(device, backbone, *map(int, sizes)))}))
