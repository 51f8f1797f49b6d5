"""Jacobian matching against finite differences, noise, and what normalisation makes it blind to."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.network import Seen
from transfer.features import jacobian
from transfer.features.jacobian import gap_of
from transfer.step import View


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tiny(nn.Module):
    """x (B, 3, 4, 4) -> tanh(conv) (B, 5, 2, 2) -> logits (B, 4)."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(0.5 * draw(seed, 5, 3, 3, 3))
        self.head = nn.Parameter(draw(seed + 1, 4, 5))

    def look(self, x: Tensor) -> Seen:
        maps = torch.tanh(nn.functional.conv2d(x, self.kernel))
        pooled = maps.mean((2, 3))
        return Seen(pooled @ self.head.T, {"only": maps}, pooled, {})


def step(student: Tiny, guide: Tiny, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    given = View(guide.look, x, attached=False)
    return SimpleNamespace(
        student=View(student.look, x, attached=True), source=given, teacher=given,
        hard_targets=torch.tensor([0, 3, 1])[: len(x)],
    )  # fmt: skip


def slopes(number: Any, x: Tensor, h: float = 1e-6) -> Tensor:
    """Central differences of number(x) (B,) for every input of every sample."""
    found = torch.zeros_like(x)
    for place in range(x[0].numel()):
        bump = torch.zeros_like(x).flatten(1)
        bump[:, place] = h
        bump = bump.view_as(x)
        found.view(len(x), -1)[:, place] = (number(x + bump) - number(x - bump)) / (2 * h)
    return found


def directions(jacobians: Tensor) -> Tensor:
    flat = jacobians.flatten(1)
    return flat / flat.norm(dim=1, keepdim=True)


def test_the_logits_slopes_are_finite_differences() -> None:
    one, two, x = Tiny(0), Tiny(5), draw(9, 3, 3, 4, 4)
    labels = torch.tensor([0, 3, 1])
    with torch.no_grad():
        found = [slopes(lambda y, net=net: net.look(y).logits[range(3), labels], x) for net in (one, two)]
    expected = (directions(found[0]) - directions(found[1])).square().sum(1).mean()
    torch.testing.assert_close(
        jacobian.loss(step(one, two, x), beta=2.0, mode="logit"), 2.0 * expected.float(), rtol=1e-4, atol=1e-6
    )


def test_the_attentions_slopes_are_finite_differences() -> None:
    one, two, x = Tiny(0), Tiny(5), draw(9, 3, 3, 4, 4)

    def energy(net: Tiny, y: Tensor) -> Tensor:
        return net.look(y).features["only"].square().sum(1)

    with torch.no_grad():
        found = [slopes(lambda y, net=net: energy(net, y).amax((1, 2)), x) for net in (one, two)]
        expected = (directions(found[0]) - directions(found[1])).square().sum(1).mean()
        expected = expected + (directions(energy(one, x)) - directions(energy(two, x))).square().sum(1).mean()
    torch.testing.assert_close(
        jacobian.loss(step(one, two, x), beta=0.5, mode="attention"), 0.5 * expected.float(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("mode", ["attention", "logit"])
def test_the_weights_of_the_student_alone_learn(mode: str) -> None:
    one, two = Tiny(0), Tiny(5)
    jacobian.loss(step(one, two, draw(9, 3, 3, 4, 4)), beta=1.0, mode=mode).backward()
    assert one.kernel.grad is not None
    assert one.kernel.grad.abs().max() > 0
    assert two.kernel.grad is None


@pytest.mark.parametrize("mode", ["attention", "logit"])
def test_the_second_derivative_is_right(mode: str) -> None:
    """The loss's own gradient in one weight, against its differences: nothing of the student's graph is missing."""
    one, two, x = Tiny(0), Tiny(5), draw(9, 3, 3, 4, 4)
    (gradient,) = torch.autograd.grad(jacobian.loss(step(one, two, x), beta=1.0, mode=mode), one.kernel)
    h, values = 1e-2, []
    for sign in (1, -1):
        with torch.no_grad():
            one.kernel[2, 1, 0, 1] += sign * h
        values.append(jacobian.loss(step(one, two, x), beta=1.0, mode=mode).item())
        with torch.no_grad():
            one.kernel[2, 1, 0, 1] -= sign * h
    assert gradient[2, 1, 0, 1].item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=2e-2, abs=1e-4)


def test_scale_does_not_count() -> None:
    j, k = draw(0, 4, 3, 5, 5), draw(1, 4, 3, 5, 5)
    torch.testing.assert_close(gap_of(7.3 * j, 0.2 * k), gap_of(j, k))
    assert gap_of(j, 3 * j).item() == pytest.approx(0, abs=1e-10)
    torch.testing.assert_close(gap_of(j, -j), torch.tensor(4.0))
    one, two, x = Tiny(0), Tiny(5), draw(9, 3, 3, 4, 4)
    before = jacobian.loss(step(one, two, x), beta=1.0, mode="logit")
    with torch.no_grad():
        two.head *= 5
    torch.testing.assert_close(jacobian.loss(step(one, two, x), beta=1.0, mode="logit"), before)


def test_linear_networks_under_noise() -> None:
    """E||T(x + e) - S(x + e)||^2 = ||T(x) - S(x)||^2 + s^2 ||J_T - J_S||_F^2, exactly."""
    s, t, x, deviation = draw(0, 4, 6), draw(1, 4, 6), draw(2, 6), 0.3
    noise = deviation * draw(3, 200_000, 6)
    sampled = ((x + noise) @ (t - s).T).square().sum(1).mean()
    closed = ((t - s) @ x).square().sum() + deviation**2 * 4 * gap_of(s, t, normalised=False)
    torch.testing.assert_close(sampled, closed.double(), rtol=1e-2, atol=0)
