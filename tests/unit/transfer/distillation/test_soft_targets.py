"""Soft targets against the formulas of their paper."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor
from torch.nn import functional

from transfer.distillation import soft_targets
from transfer.distillation.soft_targets import soft_loss
from transfer.step import Step

Draw, Taught = Callable[..., Tensor], Callable[..., Step]
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_the_loss_is_written_as_in_the_convention(logits: Draw, taught: Taught, temperature: float) -> None:
    """(1 - a) CE + a T^2 KL, worked out with scipy."""
    z, v, a = logits(0), logits(1), 0.3
    p, log_p = softmax(v.numpy() / temperature, 1), log_softmax(v.numpy() / temperature, 1)
    divergence = (p * (log_p - log_softmax(z.numpy() / temperature, 1))).sum(1).mean()
    labels = -log_softmax(z.numpy(), 1)[np.arange(6), TARGETS.numpy()].mean()
    found = soft_targets.loss(taught(z, v, TARGETS), weight=a, temperature=temperature)
    assert found.item() == pytest.approx((1 - a) * labels + a * temperature**2 * divergence, rel=1e-10)


def test_without_weight_it_is_cross_entropy(logits: Draw, taught: Taught) -> None:
    z, v = logits(0), logits(1)
    found = soft_targets.loss(taught(z, v, TARGETS), weight=0.0, temperature=4.0)
    torch.testing.assert_close(found, functional.cross_entropy(z, TARGETS))


def test_with_all_the_weight_the_labels_do_not_matter(logits: Draw, taught: Taught) -> None:
    z, v = logits(0), logits(1)
    one, two = (soft_targets.loss(taught(z, v, t), weight=1.0, temperature=2.0) for t in (TARGETS, TARGETS.flip(0)))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, soft_loss(z, v, temperature=2.0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient(logits: Draw, taught: Taught, temperature: float) -> None:
    """dL/dz = [(1 - a) (q - y) + a T (q_T - p_T)] / B."""
    z, v, a = logits(0).requires_grad_(), logits(1), 0.3
    (gradient,) = torch.autograd.grad(soft_targets.loss(taught(z, v, TARGETS), weight=a, temperature=temperature), z)
    numbers = z.detach().numpy()
    soft = softmax(numbers / temperature, 1) - softmax(v.numpy() / temperature, 1)
    expected = (1 - a) * (softmax(numbers, 1) - np.eye(4)[TARGETS]) + a * temperature * soft
    np.testing.assert_allclose(gradient.numpy(), expected / 6, atol=1e-12)


def test_the_cross_entropy_form_has_the_same_gradient(logits: Draw) -> None:
    z, v, temperature = logits(0).requires_grad_(), logits(1), 3.0
    p, log_q = torch.softmax(v / temperature, 1), torch.log_softmax(z / temperature, 1)
    cross_entropy = temperature**2 * -(p * log_q).sum(1).mean()
    entropy = temperature**2 * -(p * p.log()).sum(1).mean()
    divergence = soft_loss(z, v, temperature=temperature)
    torch.testing.assert_close(cross_entropy - divergence, entropy)
    (one,), (two,) = torch.autograd.grad(cross_entropy, z), torch.autograd.grad(divergence, z)
    torch.testing.assert_close(one, two)


def test_a_hot_teacher_is_matched_in_its_centred_logits(logits: Draw) -> None:
    """T -> infinity: T^2 KL -> 1/(2C) sum ((z - mean z) - (v - mean v))^2; the error falls as 1 / T."""
    z, v = logits(0), logits(1)
    gap = (z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))
    limit = (gap.square().sum(1).mean() / (2 * 4)).item()
    errors = [abs(soft_loss(z, v, temperature=t).item() / limit - 1) for t in (1e2, 1e3, 1e4)]
    assert errors[1] < 3e-3
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_soft_gradients_keep_their_size_as_the_temperature_grows(logits: Draw) -> None:
    """That is what T^2 is for."""
    sizes = []
    for temperature in (10.0, 1000.0):
        z = logits(0).requires_grad_()
        (gradient,) = torch.autograd.grad(soft_loss(z, logits(1), temperature=temperature), z)
        sizes.append(gradient.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_a_student_that_equals_its_teacher_has_the_gradient_of_the_labels_alone(logits: Draw, taught: Taught) -> None:
    z = logits(0).requires_grad_()
    assert soft_loss(z, z.detach(), temperature=2.0).item() == pytest.approx(0, abs=1e-12)
    (both,) = torch.autograd.grad(
        soft_targets.loss(taught(z, z.detach(), TARGETS), weight=0.7, temperature=2.0), z
    )  # fmt: skip
    (labels,) = torch.autograd.grad(functional.cross_entropy(z, TARGETS), z)
    torch.testing.assert_close(both, 0.3 * labels)
