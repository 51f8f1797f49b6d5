"""Regression on logits: its gradient, its least-squares optimum, its kinship with soft targets."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from transfer.distillation import mimic
from transfer.distillation.mimic import logit_regression
from transfer.distillation.soft_targets import soft_loss
from transfer.step import Step

Draw, Taught = Callable[..., Tensor], Callable[..., Step]
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_the_loss_is_half_the_squared_distance_of_logits_and_ignores_labels(logits: Draw, taught: Taught) -> None:
    z, v = logits(0).requires_grad_(), logits(1)
    found = mimic.loss(taught(z, v, TARGETS), centred=False)
    assert found.item() == pytest.approx(np.mean([((z[b] - v[b]).norm().item()) ** 2 / 2 for b in range(6)]))
    (gradient,) = torch.autograd.grad(found, z)
    torch.testing.assert_close(gradient, (z.detach() - v) / 6)
    assert torch.equal(found, mimic.loss(taught(z, v, TARGETS.flip(0)), centred=False))


def test_centred_it_does_not_see_a_constant_and_plain_it_does(logits: Draw) -> None:
    z, v = logits(0), logits(1)
    shift = torch.arange(6.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(logit_regression(z + shift, v, centred=True), logit_regression(z, v, centred=True))
    assert logit_regression(v + shift, v, centred=True).item() == pytest.approx(0, abs=1e-20)
    assert logit_regression(v + shift, v, centred=False).item() == pytest.approx(4 / 2 * np.mean(np.arange(6.0) ** 2))


def test_centred_it_is_the_limit_of_hot_soft_targets(logits: Draw) -> None:
    z, v = logits(0), logits(1)
    hot = soft_loss(z, v, temperature=1e4)
    torch.testing.assert_close(logit_regression(z, v, centred=True) / 4, hot, rtol=1e-3, atol=0)


def test_a_linear_student_ends_at_the_least_squares_answer(logits: Draw) -> None:
    x, v = logits(2, n=30, n_classes=5), logits(3, n=30, n_classes=4)
    answer = torch.from_numpy(np.linalg.lstsq(x.numpy(), v.numpy(), rcond=None)[0]).requires_grad_()
    (gradient,) = torch.autograd.grad(logit_regression(x @ answer, v, centred=False), answer)
    assert gradient.abs().max() < 1e-12


def test_a_student_that_equals_its_teacher_loses_nothing(logits: Draw) -> None:
    assert logit_regression(logits(0), logits(0), centred=False) == 0
