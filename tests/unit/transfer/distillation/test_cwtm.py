"""Weights from the teacher's largest probability, against numpy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor
from torch.nn import functional

from transfer.distillation import cwtm
from transfer.distillation.cwtm import confidence, weighted_cross_entropy
from transfer.phase import Phase, Plan
from transfer.step import Step

Draw, Taught = Callable[..., Tensor], Callable[..., Step]
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_the_weights_of_a_batch_sum_to_one_and_follow_the_largest_probability(logits: Draw) -> None:
    v = logits(1)
    largest = softmax(v.numpy(), 1).max(1)
    np.testing.assert_allclose(confidence(v).numpy(), largest / largest.sum(), rtol=1e-12)
    assert confidence(v).sum().item() == pytest.approx(1)


def test_the_loss_and_its_gradient(logits: Draw, taught: Taught) -> None:
    """L = sum_b w_b CE_b; dL/dz_b = w_b (q_b - y_b)."""
    z, v = logits(0).requires_grad_(), logits(1)
    w = confidence(v).numpy()
    found = cwtm.loss(taught(z, v, TARGETS), generations=1)
    numbers = z.detach().numpy()
    assert found.item() == pytest.approx(-(w * log_softmax(numbers, 1)[np.arange(6), TARGETS]).sum(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, z)
    np.testing.assert_allclose(gradient.numpy(), w[:, None] * (softmax(numbers, 1) - np.eye(4)[TARGETS]), atol=1e-12)


def test_a_teacher_that_is_equally_sure_of_all_gives_cross_entropy(logits: Draw, taught: Taught) -> None:
    z = logits(0)
    rows = torch.stack([logits(1, n=1)[0].roll(k) for k in range(6)])  # the same answers for other classes
    found = cwtm.loss(taught(z, rows, TARGETS), generations=1)
    torch.testing.assert_close(found, functional.cross_entropy(z, TARGETS))


def test_which_class_the_teacher_means_does_not_matter(logits: Draw, taught: Taught) -> None:
    z, v = logits(0), logits(1)
    one, two = (cwtm.loss(taught(z, t, TARGETS), generations=1) for t in (v, v.roll(1, dims=1) + 3.0))
    torch.testing.assert_close(one, two)


def test_mixed_labels_count_in_proportion(logits: Draw) -> None:
    z, w, other = logits(0), confidence(logits(1)), TARGETS.flip(0)
    mixed = 0.3 * functional.one_hot(TARGETS, 4) + 0.7 * functional.one_hot(other, 4)
    expected = 0.3 * weighted_cross_entropy(z, TARGETS, w) + 0.7 * weighted_cross_entropy(z, other, w)
    torch.testing.assert_close(weighted_cross_entropy(z, mixed.double(), w), expected)


def test_generations(carried_out: Callable[..., list[Phase]]) -> None:
    found = carried_out(cwtm.phases(Plan(stages=("a",), new=(), steps=9, n_train=5), generations=2))
    assert [phase.teacher for phase in found] == ["none", "previous", "previous"]
