"""A step as a distillation reads it, and what the phases of a schedule are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.network import Seen
from transfer.step import Step, View, Weights


def view(logits: Tensor) -> View:
    return View(lambda _: Seen(logits, {}, logits, {}), torch.empty(0), attached=True)


@pytest.fixture
def taught() -> Callable[..., Step]:
    """A step whose student and teacher answer with given logits."""

    def make(student: Tensor, teacher: Tensor, targets: Tensor, seed: tuple[int, ...] = (0,)) -> Step:
        def never(*_: object) -> Any:
            raise AssertionError("a distillation looks at logits alone")

        return Step(
            inputs=torch.empty(0), targets=targets, weights=Weights({}, {}), progress=0.0, seed=seed, prepared={},
            net=never, look=never, student=view(student), source=never, teacher=lambda: view(teacher),  # type: ignore[arg-type]
            task_loss=functional.cross_entropy,
        )  # fmt: skip

    return make


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    def draw(seed: int, n: int = 6, n_classes: int = 4) -> Tensor:
        return 2 * torch.randn(n, n_classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    return draw
