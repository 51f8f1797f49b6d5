"""Our update rules against torch's own, and the curve of the learning rate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transfer.optimizers import OPTIMIZERS, AdamW, Group, Sgd, cosine


def quadratic(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(((w - 3).square() * (1 + torch.arange(w.numel()).view_as(w))).sum() for w in weights.values())


def fresh() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=draw).requires_grad_() for n, s in {"a": (4, 3), "b": (5,)}.items()}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum: float) -> None:
    ours, theirs = fresh(), fresh()
    mine = Sgd(ours, [Group(("a",), 1e-3, momentum), Group(("b",), 1e-2, momentum)])
    reference = torch.optim.SGD(
        [{"params": [theirs["a"]], "lr": 1e-3}, {"params": [theirs["b"]], "lr": 1e-2}], momentum=momentum
    )
    for _ in range(20):
        quadratic(ours).backward()
        mine.step(1.0)
        reference.zero_grad()
        quadratic(theirs).backward()
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_adamw_is_torchs() -> None:
    ours, theirs = fresh(), fresh()
    mine = AdamW(ours, [Group(("a", "b"), 1e-2)])
    reference = torch.optim.AdamW(list(theirs.values()), lr=1e-2, weight_decay=0.0)
    for _ in range(30):
        quadratic(ours).backward()
        mine.step(1.0)
        reference.zero_grad()
        quadratic(theirs).backward()
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm() -> None:
    weights = {"a": torch.zeros(2, requires_grad=True), "b": torch.zeros(1, requires_grad=True)}
    optimizer = Sgd(weights, [Group(("a", "b"), 1.0, 0.0)], grad_clip=1.0)
    (3 * weights["a"][0] + 4 * weights["b"][0]).backward()  # norm 5
    optimizer.step(1.0)
    torch.testing.assert_close(weights["a"].detach(), torch.tensor([-0.6, 0.0]))
    torch.testing.assert_close(weights["b"].detach(), torch.tensor([-0.8]))


def test_a_weight_without_a_gradient_stays_and_its_velocity_decays() -> None:
    weights = {"a": torch.ones(1, requires_grad=True)}
    optimizer = Sgd(weights, [Group(("a",), 0.1, 0.5)])
    weights["a"].sum().backward()
    optimizer.step(1.0)  # v = 1, w = 0.9
    optimizer.step(1.0)  # v = 0.5, w = 0.85
    torch.testing.assert_close(weights["a"].detach(), torch.tensor([0.85]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_to_the_same_bits(name: str) -> None:
    weights = fresh()
    optimizer = OPTIMIZERS[name](weights, [Group(("a", "b"), 1e-2)])
    for _ in range(3):
        quadratic(weights).backward()
        optimizer.step(1.0)
    copies = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
    other = OPTIMIZERS[name](copies, [Group(("a", "b"), 1e-2)])
    other.restore({key: tensor.clone() for key, tensor in optimizer.state.items()})
    for some, rule in ((weights, optimizer), (copies, other)):
        quadratic(some).backward()
        rule.step(0.5)
    assert all(torch.equal(weights[n], copies[n]) for n in weights)


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    assert [cosine(t, 100, 0.04) for t in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert cosine(4, 100, 0.04) == 1.0
    assert cosine(52, 100, 0.04) == pytest.approx(0.5)
    assert cosine(99, 100, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


@given(st.integers(1, 3000), st.floats(0, 0.99), st.data())
def test_the_rate_stays_between_zero_and_its_peak(n_steps: int, warmup: float, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, n_steps - 1))
    assert 0 < cosine(step, n_steps, warmup) <= 1
