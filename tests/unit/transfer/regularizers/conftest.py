"""A step that holds weights alone, weights away from their start, and descent on a loss of weights under a part."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer.optimizers import OPTIMIZERS, Group
from transfer.step import PartState, Step, Weights

SHAPES = {
    "stem.conv.weight": (4, 3, 3, 3),
    "stem.bn.weight": (4,),
    "stem.bn.bias": (4,),
    "stage.linear.weight": (5, 6),
    "head.weight": (2, 4),
    "head.bias": (2,),
}


def never(*_: object) -> Any:
    raise AssertionError("a penalty looks at weights alone")


@pytest.fixture(name="make_step")
def _make_step() -> Callable[..., Step]:
    def make(
        weights: Mapping[str, Tensor], start: Mapping[str, Tensor], *, decoupled: bool = False, seed: int = 0,
        prepared: Mapping[str, Tensor] | None = None,
    ) -> Step:  # fmt: skip
        return Step(
            inputs=torch.empty(0), targets=torch.empty(0), progress=0.0, seed=(seed,), prepared=prepared or {},
            weights=Weights(weights, start, decoupled=decoupled, prepared=prepared), student=never,
            net=never, look=never, source=never, teacher=never, task_loss=never,  # type: ignore[arg-type]
        )  # fmt: skip

    return make


@pytest.fixture(name="moved")
def _moved() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and where they started; the head has no start."""
    draw = torch.Generator().manual_seed(1)
    weights = {n: torch.randn(s, generator=draw).requires_grad_() for n, s in SHAPES.items()}
    start = {n: torch.randn(w.shape, generator=draw) for n, w in weights.items() if not n.startswith("head")}
    return weights, start


@pytest.fixture(name="descend")
def _descend(make_step: Callable[..., Step]) -> Callable[..., Tensor]:
    """Where `a.weight` comes to rest on `task(w)` + the part, as the loop carries it out."""

    def run(
        part: ModuleType, params: Mapping[str, Any], task: Callable[[Tensor], Tensor], start: Tensor, *,
        prepared: Mapping[str, Tensor] | None = None, lr: float = 0.05, momentum: float = 0.0, steps: int = 800,
        optimizer: str = "sgd",
    ) -> Tensor:  # fmt: skip
        w = start.clone().requires_grad_()
        kind = OPTIMIZERS[optimizer]
        step = make_step({"a.weight": w}, {"a.weight": start}, decoupled=kind.decoupled, prepared=prepared)
        takes = kind(step.weights, [Group(("a.weight",), lr, momentum)])
        if not kind.decoupled:
            step.weights.momentum = {"a.weight": momentum}
        state = PartState()
        for _ in range(steps):
            (task(w) + part.loss(step, **params)).backward()
            takes.step(1.0)
            with torch.no_grad():
                part.after_step(step.weights, step.start, takes.rates(1.0), state, **params)
        return w.detach()

    return run
