"""What kept activations save: later trials that train a head, or the last stage (the tenth to twelfth of their kind),
against such as keep nothing; heads trained together against one after another. One thread, wall time, from the order to
the files of the ended trial.

A trial keeps nothing where every epoch shows a new look of each picture. Beside it stands the same trial with two
looks, plain and mirrored, which were kept by an earlier one.

Bounds: operations of what has to be computed at the speed of a large matrix product, bytes of what has to be read at
the speed of a copy.
"""

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import transfer.bench
from benchmarks import bounds
from benchmarks.table import Figure, quantile
from benchmarks.trainer import packed
from domain.job import Objective
from domain.lot import LotOrder, SourceFiles, TrialOrder
from domain.recipe import DataTreatment, Optimizer, Part, Recipe
from models.build import build
from models.network import HEAD as HEAD_NAME
from models.weights import save_weights
from transfer.fit import Fit
from transfer.heads import together
from transfer.loop import Loop
from transfer.phase import Phase
from transfer.setting import Setting

BATCH = 64
HEAD = ("resnet18", 128, 1000, 10)  # backbone, pixels, images, epochs
LAST_STAGE = (("resnet18", 128, 1.9), ("mobilenet_v2", 128, 1.9), ("resnet18", 64, None), ("mobilenet_v2", 64, None))
N_IMAGES, N_EPOCHS, N_ROUNDS = 256, 3, 3
NTH = 10  # trial that is timed first; the one before all of them fills
N_HEADS = 64
NEW_LOOKS: dict[str, Any] = {"augmentation": 0.0, "flip": True}
TWO_LOOKS = NEW_LOOKS | {"views": 2}


def measure() -> list[Figure]:
    torch.set_num_threads(1)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        figures += _head(Path(folder))
    for backbone, resolution, aim in LAST_STAGE:
        with tempfile.TemporaryDirectory() as folder:
            figures += _last_stage(Path(folder), backbone, resolution, aim)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        figures += _heads(Path(folder))
    return figures


class Bench:
    """One pack and one source, and trials on them."""

    def __init__(self, folder: Path, backbone: str, resolution: int, n_images: int, n_classes: int = 4) -> None:
        self.folder, self.backbone, self.resolution = folder, backbone, resolution
        self.pack, self.classes = packed(folder, backbone, resolution, n_images, n_classes)
        self.n_images = n_images
        net = build(backbone, n_classes=2, seed=0)
        self.n_stages, self.width = net.n_stages, net.feature_dim
        save_weights(net.state_dict(), folder / "source.safetensors", {"backbone": backbone}, durable=False)
        self._n_lots = 0

    def recipe(self, n_frozen: int, n_epochs: int, looks: dict[str, Any], *, lr: float = 1e-2, seed: int = 0) -> Recipe:
        return Recipe(
            task="classification", source="src_bench", backbone=self.backbone, seed=seed,
            schedule=Part(name="freeze", params={"depth": n_frozen}), steps=self.n_images // BATCH * n_epochs,
            optimizer=Optimizer(lr_head=lr), data=DataTreatment(batch_size=BATCH, resolution=self.resolution, **looks),
        )  # fmt: skip

    def seconds(self, *recipes: Recipe) -> float:
        """A lot of these recipes, from the order to the end, in a process that has trained on this pack before."""
        order = self.order(*recipes)
        began = time.perf_counter()
        fit = Fit(order, stopped=go)
        for _ in fit:
            pass
        took = time.perf_counter() - began
        for trial in order.trials:
            outcome = fit.outcome(trial.trial_id)
            if outcome.state != "COMPLETE":
                raise RuntimeError(f"the trial is {outcome.state}: {outcome.error}")
        return took

    def head(self, order: LotOrder) -> Loop:
        """The one phase of the first trial of a lot of heads, ready to begin."""
        fold = transfer.bench.Bench(Setting(order, order.trials[0], go), 0)
        return Loop(fold, Phase(trainable=(HEAD_NAME,)), 0, order.trials[0].recipe.steps)

    def order(self, *recipes: Recipe) -> LotOrder:
        self._n_lots += 1
        trials = tuple(
            TrialOrder(
                trial_id=f"tr_{self._n_lots}_{n}", number=n, recipe=recipe, pack=str(self.pack),
                source=SourceFiles(weights=str(self.folder / "source.safetensors")),
            )
            for n, recipe in enumerate(recipes)
        )  # fmt: skip
        return LotOrder(
            lot_id=f"lot_{self._n_lots}", fence=1, trials=trials, objective=Objective(name="accuracy"), n_folds=1,
            classes=self.classes, scratch=str(self.folder / f"scratch-{self._n_lots}"),
            activations=str(self.folder / "activations"),
        )  # fmt: skip


def _head(folder: Path) -> list[Figure]:
    backbone, resolution, n_images, n_epochs = HEAD
    bench = Bench(folder, backbone, resolution, n_images)
    kept = bench.recipe(bench.n_stages, n_epochs, TWO_LOOKS)
    first = bench.seconds(kept)
    later = quantile([bench.seconds(kept) for _ in range(5)], 0.5)
    uncached = bench.seconds(bench.recipe(bench.n_stages, n_epochs, NEW_LOOKS))
    label = f"head, {backbone}@{resolution}, {n_images} images, {n_epochs} epochs"
    looking_s = n_images * bounds.of_looking(backbone, resolution) / bounds.peak_flops()
    reading_s = n_images * n_epochs * 4 * bench.width / bounds.bandwidth_of_copy()
    return [
        Figure(f"{label}: nothing kept", uncached, "s", bound=n_epochs * looking_s),
        Figure(f"{label}: the trial that fills", first, "s", bound=2 * looking_s),
        Figure(f"{label}: a later one", later, "s", bound=reading_s),
        Figure(f"{label}: nothing kept over a later one", uncached / later, "ratio", (">=", 30.0)),
    ]


def _last_stage(folder: Path, backbone: str, resolution: int, aim: float | None) -> list[Figure]:
    bench = Bench(folder, backbone, resolution, N_IMAGES)
    recipes = [bench.recipe(bench.n_stages - 1, N_EPOCHS, looks) for looks in (TWO_LOOKS, NEW_LOOKS)]
    for _ in range(1, NTH):
        bench.seconds(recipes[0])
    times = [(bench.seconds(recipes[0]), bench.seconds(recipes[1])) for _ in range(N_ROUNDS)]
    label = f"last stage, {backbone}@{resolution}, {N_IMAGES} images, {N_EPOCHS} epochs"
    ratio = quantile([uncached / kept for kept, uncached in times], 0.5)
    training = bounds.of_training(backbone, resolution, n_frozen=bench.n_stages - 1)
    above = training - bounds.of_looking(backbone, resolution, depth=bench.n_stages - 1)
    least_s = [N_IMAGES * N_EPOCHS * operations / bounds.peak_flops() for operations in (training, above)]
    return [
        Figure(f"{label}: nothing kept", quantile([t for _, t in times], 0.5), "s", bound=least_s[0]),
        Figure(f"{label}: the tenth trial", quantile([t for t, _ in times], 0.5), "s", bound=least_s[1]),
        Figure(f"{label}: nothing kept over the tenth", ratio, "ratio", None if aim is None else (">=", aim)),
    ]


def _heads(folder: Path) -> list[Figure]:
    backbone, resolution, n_images, n_epochs = "resnet18", 64, 1000, 10
    bench = Bench(folder, backbone, resolution, n_images, n_classes=10)
    recipes = [
        bench.recipe(bench.n_stages, n_epochs, {"augmentation": 0.0, "flip": False}, lr=10 ** (-3 + n / 32), seed=n)
        for n in range(N_HEADS)
    ]
    bench.seconds(recipes[0])
    trials = bench.seconds(*recipes), sum(bench.seconds(recipe) for recipe in recipes)
    steps = []
    for _ in range(N_ROUNDS):
        joint, apart = bench.head(bench.order(*recipes)), [bench.head(bench.order(recipe)) for recipe in recipes]
        began = time.perf_counter()
        if together(joint) is None:
            raise RuntimeError("these heads are not trained together")
        between = time.perf_counter()
        for loop in apart:
            for _ in loop.train():
                pass
        steps.append((between - began, time.perf_counter() - between))
    label = f"{N_HEADS} heads, {n_images} x 512, 10 classes, {n_epochs} epochs"
    ratio = quantile([apart_s / together_s for together_s, apart_s in steps], 0.5)
    n_shown = N_HEADS * recipes[0].steps * BATCH
    least_s = max(
        2 * 2 * n_shown * bench.width * 10 / bounds.peak_flops(),  # logits, and the gradient
        2 * 4 * n_shown * bench.width / bounds.bandwidth_of_copy(),  # each head's batch gathered from the table
    )
    return [
        Figure(f"{label}: their steps together", quantile([s for s, _ in steps], 0.5), "s", bound=least_s),
        Figure(f"{label}: their steps one after another over together", ratio, "ratio", (">=", 7.0)),
        Figure(f"{label}: whole trials together, val and files included", trials[0], "s"),
        Figure(f"{label}: whole trials one after another over together", trials[1] / trials[0], "ratio"),
    ]


def go(_: str) -> str:
    return "go"
