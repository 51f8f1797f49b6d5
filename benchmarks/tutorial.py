"""How much faster is full fine-tuning than the loop that tutorials teach, on photographs, with both cores of a machine?

Both train one epoch in turn on the same pictures, with crops and mirroring, and look at val; each has the machine to
itself meanwhile. One of ours has one thread, so two run at a time where the tutorial's loop has two threads and two
workers of its `DataLoader`; the same with one thread is printed too, and the faster of both counts. Precision is what a
worker of this machine chooses. The bound is the operations of a step at the speed of a large matrix product in it.
Photographs: see `method_cases.DATA`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from benchmarks import bounds
from benchmarks.method_cases import DATA
from benchmarks.rivals import tutorial
from benchmarks.table import Figure, quantile
from domain.job import Objective
from domain.lot import LotOrder, SourceFiles, TrialOrder
from domain.recipe import DataTreatment, Optimizer, Part, Recipe
from intake.limits import Limits
from intake.packs import open_pack, pack
from intake.prepare import prepare
from intake.preprocess.classification import scaled
from models.build import build, member
from models.facts import facts_of
from models.weights import save_weights
from transfer.fit import Fit
from worker.machine import describe_machine

ROOT = Path(__file__).parent.parent
CASES = (("resnet18", 64), ("mobilenet_v2", 64), ("resnet18", 128), ("mobilenet_v2", 128))
N_TRAIN, N_VAL, BATCH, N_ROUNDS = 160, 32, 32, 5
AIM = 1.6


def measure() -> list[Figure]:
    if not (DATA / "hymenoptera.zip").exists():
        raise SystemExit(f"no photographs in {DATA}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_pictures(folder)
        for backbone, resolution in CASES:
            figures += _compare(folder, backbone, resolution)
    return figures


def _compare(folder: Path, backbone: str, resolution: int) -> list[Figure]:
    """Epochs a second of each contender: as many at a time as it is meant to run, in turns."""
    contenders = {"ours, 2 x 1 thread": ("ours", 2, 1), "tutorial, 1 x 2 threads": ("tutorial", 1, 2),
                  "tutorial, 2 x 1 thread": ("tutorial", 2, 1)}  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    running = {
        name: [Contender(kind, folder, backbone, resolution, n_threads) for _ in range(n)]
        for name, (kind, n, n_threads) in contenders.items()
    }
    try:
        for number in range(1 + N_ROUNDS):
            for name, group in running.items():
                began = time.perf_counter()
                for one in group:
                    one.begin_epoch()
                for one in group:
                    one.end_epoch()
                if number > 0:  # the first pays for allocation
                    rates[name].append(N_TRAIN * len(group) / (time.perf_counter() - began))
    finally:
        for group in running.values():
            for one in group:
                one.stop()
    label = f"{backbone}@{resolution}, batch {BATCH}"
    torch.set_num_threads(2)
    operations, precision = bounds.of_training(backbone, resolution), _chosen(folder, backbone, resolution)
    peaks = {name: bounds.peak_flops(getattr(torch, precision if "ours" in name else "float32")) for name in contenders}
    ours, *theirs = (rates[name] for name in contenders)
    best = max(theirs, key=lambda found: quantile(found, 0.5))
    ratios = [mine / its for mine, its in zip(ours, best, strict=True)]
    return [
        *(
            Figure(f"{label}: {name}", quantile(found, 0.5), "images/s", bound=peaks[name] / operations)
            for name, found in rates.items()
        ),
        Figure(
            f"{label}: over the faster of the tutorial's", quantile(ratios, 0.5), "ratio", (">=", AIM),
            {"precision": precision, "lowest": min(ratios), "highest": max(ratios)},
        ),
    ]  # fmt: skip


class Contender:
    """A process that trains an epoch whenever it is told to."""

    def __init__(self, kind: str, folder: Path, backbone: str, resolution: int, n_threads: int) -> None:
        arguments = [kind, str(folder), backbone, str(resolution), str(n_threads)]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.tutorial", *arguments], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(n_threads)},
        )  # fmt: skip
        self._answer()  # it is ready

    def begin_epoch(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("epoch\n")
        self._child.stdin.flush()

    def end_epoch(self) -> None:
        self._answer()

    def stop(self) -> None:
        self._child.kill()
        self._child.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("a contender has died")
        answer: dict[str, Any] = json.loads(line)
        return answer


def contend(kind: str, folder: Path, backbone: str, resolution: int, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    if kind == "tutorial":
        network = getattr(torchvision.models, backbone)(num_classes=2)
        epochs: Any = tutorial.train(network, folder, resolution=resolution, epochs=99, batch_size=BATCH, lr=1e-3)
    else:
        epochs = _epochs_of_fit(folder, backbone, resolution)
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        next(epochs)
        sys.stdout.write(json.dumps({"done": True}) + "\n")
        sys.stdout.flush()


def _epochs_of_fit(folder: Path, backbone: str, resolution: int) -> Any:
    """A report after every epoch, crops and mirroring as the tutorial has them."""
    recipe = Recipe(
        task="classification", source="src_bench", backbone=backbone,
        optimizer=Optimizer(lr_head=1e-3, inner_ratio=1.0),
        schedule=Part(name="freeze", params={"depth": 0}), steps=N_TRAIN // BATCH * 20,
        data=DataTreatment(batch_size=BATCH, resolution=resolution, augmentation=0.8, flip=True),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "source.safetensors"
        save_weights(build(backbone, n_classes=2, seed=0).state_dict(), weights, {}, durable=False)
        native = facts_of(member(backbone)).preprocessing
        canvas, crop = scaled(native.resize, native.crop, resolution)
        pack(folder / "items.zip", Path(scratch) / "pack", resize=canvas, crop=crop, interpolation=native.interpolation)
        trial = TrialOrder(
            trial_id="tr_0", number=0, recipe=recipe, source=SourceFiles(weights=str(weights)),
            pack=str(Path(scratch) / "pack"),
        )  # fmt: skip
        asked = str(describe_machine()["precision"])
        order = LotOrder.model_validate({
            "lot_id": "lot_0", "fence": 1, "trials": (trial,), "objective": Objective(name="accuracy"), "n_folds": 1,
            "classes": open_pack(Path(scratch) / "pack").classes, "scratch": scratch, "precision": asked,
            "paces": str(folder / "paces"),
        })  # fmt: skip
        yield from (report for report in Fit(order, stopped=lambda _: "go") if report.step % (N_TRAIN // BATCH) == 0)


def _chosen(folder: Path, backbone: str, resolution: int) -> str:
    """The precision that a worker of this machine has noted as the faster one."""
    notes = [json.loads(file.read_text("utf-8")) for file in (folder / "paces").glob("*.json")]
    own = [note for note in notes if (note["backbone"], note["resolution"]) == (backbone, resolution)]
    return str(own[0]["precision"]) if own else "float32"


def _write_pictures(folder: Path) -> None:
    """The same photographs as folders of files, and as a dataset."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(DATA / "hymenoptera.zip") as given, zipfile.ZipFile(folder / "upload.zip", "w") as upload:
        classes: dict[str, list[str]] = {}
        for name in sorted(n for n in given.namelist() if not n.endswith("/")):
            classes.setdefault(name.partition("/")[0], []).append(name)
        for names in classes.values():
            chosen = rng.permutation(len(names))
            n_train, n_val = N_TRAIN // len(classes), N_VAL // len(classes)
            for place, number in enumerate(chosen[: n_train + 2 * n_val]):
                split = "train" if place < n_train else "val" if place < n_train + n_val else "test"
                content, target = given.read(names[number]), folder / split / names[number]
                upload.writestr(f"{split}/{names[number]}", content)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
    prepare(folder / "upload.zip", folder / "items.zip", task="classification", options={}, limits=Limits())


if __name__ == "__main__":
    kind, root, backbone, resolution, n_threads = sys.argv[1:]
    contend(kind, Path(root), backbone, int(resolution), int(n_threads))
