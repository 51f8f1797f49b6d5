"""Image classification: one label per picture. Views, loss, predictions and metrics, as `fit` asks for them.

`fit` handles inputs and targets without looking into them; what they are is this file's business.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from domain.catalogue import Preprocessing
from domain.recipe import DataTreatment
from domain.space import Choice, FloatRange, IntRange, Range
from intake.packs import Pack
from transfer import evaluate
from transfer.views import Items, Pictures

OBJECTIVES = ("accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc")
SPACE: dict[str, Range] = {
    "head.kind": Choice(options=("linear", "mlp"), default="linear"),
    "optimizer.name": Choice(options=("sgd", "adamw"), default="sgd"),
    "optimizer.lr_head": FloatRange(low=1e-5, high=1.0, log=True, default=1e-2),
    "optimizer.inner_ratio": FloatRange(low=0.01, high=1.0, log=True, default=0.1),
    "optimizer.stage_decay": FloatRange(low=0.5, high=1.0, default=1.0),
    "optimizer.momentum": Choice(options=(0.0, 0.9), default=0.9),
    "optimizer.grad_clip": FloatRange(low=0.0, high=100.0, default=1.0),
    "optimizer.warmup_frac": FloatRange(low=0.0, high=0.5, default=0.05),
    "batch_norm": Choice(options=("train", "eval", "frozen"), default="eval"),
    "data.batch_size": Choice(options=(16, 32, 64, 128), default=32),
    "data.augmentation": FloatRange(low=0.0, high=1.0, default=0.5),
    "data.flip": Choice(options=(True, False), default=True),
    "data.mixup_alpha": Choice(options=(0.0, 0.1, 0.2), default=0.0),
    "data.views": IntRange(low=0, high=64, default=0),
    "data.fraction": FloatRange(low=0.05, high=1.0, default=1.0),
    "data.label_smoothing": Choice(options=(0.0, 0.1), default=0.0),
    "steps": IntRange(low=1, high=80_000, log=True, default=500),
}
# Where a job may go beyond what is worth searching unasked.
LEGAL: dict[str, Range] = {
    "optimizer.lr_head": FloatRange(low=1e-6, high=10.0, log=True, default=1e-2),
    "optimizer.inner_ratio": FloatRange(low=0.0, high=10.0, default=0.1),
    "optimizer.stage_decay": FloatRange(low=0.1, high=1.0, default=1.0),
    "optimizer.momentum": FloatRange(low=0.0, high=0.999, default=0.9),
    "data.batch_size": IntRange(low=2, high=1024, log=True, default=32),
    "data.mixup_alpha": FloatRange(low=0.0, high=2.0, default=0.0),
    "data.label_smoothing": FloatRange(low=0.0, high=0.5, default=0.0),
}


VIEWS_SEED = 20_181_021  # of all views that trials share


class Problem:
    """The pictures of one pack, seen as a learning problem."""

    def __init__(self, pack: Pack, preprocessing: Preprocessing, *, device: torch.device, channels_last: bool) -> None:
        self.labels: NDArray[np.int64] = np.asarray(pack.labels, dtype=np.int64)
        self.n_classes = len(pack.classes)
        self.device = device
        self._pictures = Pictures(pack, preprocessing, device=device, channels_last=channels_last)
        self._labels = torch.from_numpy(self.labels.copy()).to(device)

    def evaluation_inputs(self, items: Items) -> Tensor:
        return self._pictures.evaluation(items)

    def training_inputs(self, items: Items, seed: int, epoch: int, data: DataTreatment) -> Tensor:
        view = view_of(seed, epoch, data)
        if view is not None and data.views:
            return self.view(items, view, data)
        return self._pictures.training(items, seed, epoch, augmentation=data.augmentation, flip=data.flip)

    def announce(self, items: Items) -> None:
        """These items will be asked for soon."""
        self._pictures.announce(items)

    def view(self, items: Items, view: int, data: DataTreatment) -> Tensor:
        """One of the `data.views` looks of each item, the same in every trial: what follows from it can be shared."""
        return self._pictures.training(items, VIEWS_SEED, view, augmentation=data.augmentation, flip=data.flip)

    def targets(self, items: Items) -> Tensor:  # (B,)
        return self._labels[torch.from_numpy(items)]


def n_looks(data: DataTreatment) -> int:
    """How many different looks an item has: of so few, activations of frozen stages can be kept. 0: no end of them."""
    if data.mixup_alpha > 0:
        return 0
    return 1 if data.augmentation == 0 and not data.flip else data.views


def view_of(seed: int, epoch: int, data: DataTreatment) -> int | None:
    """Which look the items have in an epoch of a trial; None: evaluation pixels. Trials begin with different ones."""
    return None if data.augmentation == 0 and not data.flip else (seed + epoch) % max(1, data.views)


def mix(inputs: Tensor, targets: Tensor, shares: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Mixup within a batch: each item with its mirror, x = s_i x_i + (1 - s_i) x_j, by shares (B,) of its own. Targets
    become probabilities (B, C)."""
    one_hot = functional.one_hot(targets, n_classes).float()
    of_pixels = shares.view(-1, *[1] * (inputs.ndim - 1))
    return torch.lerp(inputs.flip(0), inputs, of_pixels), torch.lerp(one_hot.flip(0), one_hot, shares[:, None])


def loss(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:  # (B, C), (B,) or (B, C) -> ()
    """Mean cross-entropy."""
    return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def metrics(predictions: NDArray[np.float32], targets: NDArray[np.int64]) -> Mapping[str, float]:
    """Every number reported of predictions (N, C) on val; the objectives are among them."""
    return evaluate.metrics(predictions, targets)
