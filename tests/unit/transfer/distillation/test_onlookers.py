"""The teacher of every distillation is looked at and never learnt through."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from domain.recipe import Part
from transfer.parts import bind, names
from transfer.step import Step

TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("name", names("distillation"))
def test_no_gradient_goes_through_the_teacher(
    name: str, logits: Callable[..., Tensor], taught: Callable[..., Step]
) -> None:
    """Beside a loss on input gradients its answers hang on the inputs: a backward pass through it would be in vain."""
    z, v = logits(0).requires_grad_(), logits(1).requires_grad_()
    bind("distillation", Part(name=name)).call("loss", taught(z, v, TARGETS)).backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0
    assert v.grad is None
