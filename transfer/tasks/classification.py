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

OBJECTIVES = ("accuracy", "log_loss", "macro_f1", "balanced_accuracy")
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
    "data.label_smoothing": Choice(options=(0.0, 0.1), default=0.0),
    "steps": IntRange(low=1, high=80_000, log=True, default=500),
}


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
        return self._pictures.training(items, seed, epoch, augmentation=data.augmentation, flip=data.flip)

    def targets(self, items: Items) -> Tensor:  # (B,)
        return self._labels[torch.from_numpy(items)]


def fixed_views(data: DataTreatment) -> bool:
    """Whether an item looks the same in every epoch: then activations of frozen stages need computing only once."""
    return data.augmentation == 0 and not data.flip and data.mixup_alpha == 0


def mix(inputs: Tensor, targets: Tensor, share: float, n_classes: int) -> tuple[Tensor, Tensor]:
    """Mixup within a batch: each item with its mirror, x = s x_i + (1 - s) x_j. Targets become probabilities (B, C)."""
    one_hot = functional.one_hot(targets, n_classes).float()
    return torch.lerp(inputs.flip(0), inputs, share), torch.lerp(one_hot.flip(0), one_hot, share)


def loss(logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:  # (B, C), (B,) or (B, C) -> ()
    """Mean cross-entropy."""
    return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def metrics(predictions: NDArray[np.float32], targets: NDArray[np.int64]) -> Mapping[str, float]:
    """Every number reported of predictions (N, C) on val; the objectives are among them."""
    return evaluate.metrics(predictions, targets)
