"""Distillation and attention losses against their closed forms."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from transfer.distillation import soft_targets
from transfer.distillation.soft_targets import soft_loss
from transfer.features.attention import attention_map, distance
from transfer.tasks import classification


class Fixed:
    """A view of given logits."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class GivenStep:
    """As much of a step as a distillation reads."""

    def __init__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> None:
        self.student, self.teacher, self.targets = Fixed(student), Fixed(teacher), targets
        self.task_loss = functional.cross_entropy(student, targets)


def logits(seed: int, n: int = 6, n_classes: int = 4) -> Tensor:
    return 2 * torch.randn(n, n_classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


def distil(student: Tensor, teacher: Tensor, *, weight: float, temperature: float) -> Tensor:
    return soft_targets.loss(GivenStep(student, teacher, TARGETS), weight=weight, temperature=temperature)  # type: ignore[arg-type]


def test_without_weight_it_is_cross_entropy() -> None:
    z, v = logits(0), logits(1)
    torch.testing.assert_close(distil(z, v, weight=0.0, temperature=4.0), functional.cross_entropy(z, TARGETS))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_the_gradient_is_the_slides(temperature: float) -> None:
    """dL/dz = (1 - a) (q - y) + a T (q_T - p_T), over the batch."""
    z, v, a = logits(0).requires_grad_(), logits(1), 0.3
    (gradient,) = torch.autograd.grad(distil(z, v, weight=a, temperature=temperature), z)
    y = functional.one_hot(TARGETS, 4).double()
    soft = torch.softmax(z / temperature, 1) - torch.softmax(v / temperature, 1)
    expected = (1 - a) * (torch.softmax(z, 1) - y) + a * temperature * soft
    torch.testing.assert_close(gradient, expected.detach() / 6)


def test_a_hot_teacher_is_matched_in_its_logits() -> None:
    """T -> infinity: T^2 KL -> 1/(2C) sum ((z - mean z) - (v - mean v))^2."""
    z, v = logits(0), logits(1)
    gap = (z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))
    expected = gap.square().sum(1).mean() / (2 * 4)
    torch.testing.assert_close(soft_loss(z, v, temperature=1e4), expected, rtol=1e-3, atol=0)


def test_a_student_that_equals_its_teacher_loses_nothing() -> None:
    z = logits(0).requires_grad_()
    value = soft_loss(z, z.detach(), temperature=2.0)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def maps(seed: int) -> Tensor:
    return torch.randn(5, 7, 3, 4, generator=torch.Generator().manual_seed(seed))


def test_the_codes_distance_is_a_cosine() -> None:
    """mean (Q_S - Q_T)^2 = 2 / n_pixels * mean_b (1 - cos(Q_S, Q_T))."""
    one, two = maps(0), maps(1)
    cosine = functional.cosine_similarity(one.square().sum(1).flatten(1), two.square().sum(1).flatten(1))
    torch.testing.assert_close(distance(one, two, mode="code"), 2 / 12 * (1 - cosine).mean())


def test_the_papers_distance_is_half_the_norm() -> None:
    one, two = maps(0), maps(1)
    gap = attention_map(one) - attention_map(two)
    torch.testing.assert_close(distance(one, two, mode="paper"), gap.square().sum(1).sqrt().mean() / 2)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_attention_is_blind_to_scale_and_order_of_channels(mode: str) -> None:
    one, two = maps(0), maps(1)
    shuffled = 3.7 * two[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(distance(one, shuffled, mode=mode), distance(one, two, mode=mode))
    assert distance(one, one, mode=mode) == 0


def test_mixup_is_the_mixture_of_two_losses() -> None:
    """Of every item by a share of its own."""
    z, shares, pictures = logits(0).float(), torch.tensor([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), torch.arange(6.0)
    inputs, mixed = classification.mix(pictures.view(6, 1, 1, 1), TARGETS, shares, 4)
    torch.testing.assert_close(inputs.flatten(), shares * pictures + (1 - shares) * pictures.flip(0))
    each = [functional.cross_entropy(z, targets, reduction="none") for targets in (TARGETS, TARGETS.flip(0))]
    expected = (shares * each[0] + (1 - shares) * each[1]).mean()
    torch.testing.assert_close(classification.loss(z, mixed, label_smoothing=0.0), expected)
