"""Permuted predictions keep what they should and destroy the rest."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from transfer.distillation import born_again, dkpp
from transfer.distillation.dkpp import permuted
from transfer.phase import Phase, Plan
from transfer.step import Step

Draw, Taught = Callable[..., Tensor], Callable[..., Step]
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])


def some_orders(seed: int, n: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).permuted(np.tile(np.arange(width), (n, 1)), axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_argmax_max_and_the_set_of_probabilities_stay(logits: Draw, seed: int) -> None:
    p = torch.softmax(logits(seed, n=20, n_classes=7), 1)
    found = permuted(p, some_orders(seed, 20, 6))
    assert torch.equal(found.argmax(1), p.argmax(1))
    assert torch.equal(found.amax(1), p.amax(1))
    assert torch.equal(found.sort(1).values, p.sort(1).values)
    assert not torch.equal(found, p)


def test_each_row_goes_by_its_own_order() -> None:
    p = torch.tensor([[0.1, 0.6, 0.2, 0.1], [0.7, 0.0, 0.1, 0.2]])
    found = permuted(p, torch.tensor([[1, 2, 0], [2, 0, 1]]))
    torch.testing.assert_close(found, torch.tensor([[0.2, 0.6, 0.1, 0.1], [0.7, 0.2, 0.0, 0.1]]))
    torch.testing.assert_close(permuted(p, torch.tensor([[0, 1, 2], [0, 1, 2]])), p)


def test_on_average_the_minor_classes_become_equal(logits: Draw) -> None:
    """The knowledge of similar classes is gone: the mean over orders is (1 - max) / (C - 1)."""
    p = torch.softmax(logits(3, n=1, n_classes=5), 1).expand(4000, 5)
    mean = permuted(p, some_orders(0, 4000, 4)).mean(0)
    largest = p[0].argmax()
    expected = torch.full((5,), (1 - p[0, largest].item()) / 4, dtype=torch.float64)
    expected[largest] = p[0, largest]
    torch.testing.assert_close(mean, expected, atol=0.01, rtol=0)


def test_a_step_always_draws_the_same_orders_and_steps_differ(logits: Draw, taught: Taught) -> None:
    z, v = logits(0), logits(1)
    one, again, other = (dkpp.loss(taught(z, v, TARGETS, seed=s), generations=1) for s in ((4, 1), (4, 1), (4, 2)))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_gradient_is_towards_the_permuted_answers(logits: Draw, taught: Taught) -> None:
    z, v = logits(0).requires_grad_(), logits(1)
    step = taught(z, v, TARGETS, seed=(4,))
    (gradient,) = torch.autograd.grad(dkpp.loss(step, generations=1), z)
    target = softmax(z.detach().numpy(), 1) - 6 * gradient.numpy()
    p = softmax(v.numpy(), 1)
    np.testing.assert_allclose(np.sort(target, 1), np.sort(p, 1), atol=1e-12)
    np.testing.assert_array_equal(target.argmax(1), p.argmax(1))


def test_with_two_classes_it_is_born_again(logits: Draw, taught: Taught) -> None:
    step = taught(logits(0, n_classes=2), logits(1, n_classes=2), TARGETS % 2)
    plain = born_again.loss(step, generations=1, labels=False, ensemble=False)
    torch.testing.assert_close(dkpp.loss(step, generations=1), plain)


def test_generations(carried_out: Callable[..., list[Phase]]) -> None:
    found = carried_out(dkpp.phases(Plan(stages=("a",), new=(), steps=9, n_train=5), generations=2))
    assert [phase.teacher for phase in found] == ["none", "previous", "previous"]
