"""Batch spectral shrinkage against numpy's singular values and their known gradient."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transfer.features import bss
from transfer.features.bss import shrinkage


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8)])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_weakest_singular_values(shape: tuple[int, int], k: int) -> None:
    f = features(*shape)
    values = np.linalg.svd(f.numpy(), compute_uv=False)
    assert shrinkage(f, k=k).item() == pytest.approx((values[::-1][:k] ** 2).sum(), rel=1e-9)


def test_all_of_them_are_the_squared_norm() -> None:
    f = features(5, 9)
    torch.testing.assert_close(shrinkage(f, k=5), f.square().sum())


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_the_gradient_is_that_of_the_singular_vectors(shape: tuple[int, int]) -> None:
    """d sigma^2 / dF = 2 sigma u v'."""
    f = features(*shape).requires_grad_()
    (gradient,) = torch.autograd.grad(shrinkage(f, k=2), f)
    u, s, vt = np.linalg.svd(f.detach().numpy(), full_matrices=False)
    expected = 2 * (u[:, -2:] * s[-2:]) @ vt[-2:]
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-10)


def test_equal_items_have_nothing_to_shrink_and_a_finite_gradient() -> None:
    f = features(1, 9).repeat(4, 1).requires_grad_()
    value = shrinkage(f, k=2)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-9)
    assert f.grad is not None
    assert f.grad.isfinite().all()


def test_small_values_survive_single_precision() -> None:
    """A direction four thousand times weaker than the strongest: its square is below what a float adds to the other."""
    q, _ = torch.linalg.qr(features(6, 6))
    f = (q * torch.tensor([4e3, 1.0, 1.0, 1.0, 1.0, 1.0])) @ torch.linalg.qr(features(6, 6) + 1)[0]
    step: Any = SimpleNamespace(student=SimpleNamespace(pooled=f.float()))
    assert bss.loss(step, eta=1.0, k=1).item() == pytest.approx(1.0, rel=1e-2)
    assert bss.loss(step, eta=1.0, k=1).dtype == torch.float32
