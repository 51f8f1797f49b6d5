"""Weight decay: the paths of torch's own optimizers, the known optimum, the two strengths."""

import pytest
import torch

from transfer.optimizers import AdamW, Group, Sgd
from transfer.regularizers import l2
from transfer.step import PartState, Weights

CURVATURE = torch.arange(1.0, 21.0).view(5, 4) / 10


def task(w):
    return (CURVATURE * (w - 1).square()).sum() / 2


def some_start():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_walks_the_path_of_sgd_with_weight_decay(make_step, momentum) -> None:
    start = some_start()
    ours, theirs = start.clone().requires_grad_(), start.clone().requires_grad_()
    weights = {"a.weight": ours}
    mine = Sgd(weights, [Group(("a.weight",), 0.05, momentum)])
    reference = torch.optim.SGD([theirs], lr=0.05, momentum=momentum, weight_decay=0.2)
    for _ in range(50):
        step = make_step(weights, {"a.weight": start})
        (task(ours) + l2.loss(step, alpha=0.2, beta=0.0, scope="kernels")).backward()
        mine.step(1.0)
        reference.zero_grad()
        task(theirs).backward()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_it_walks_the_path_of_adamw_but_decays_after_the_update(make_step) -> None:
    """torch decays before the update: decay once up front, not at the end, and the two are the same."""
    start = some_start()
    ours, theirs = (start * (1 - 0.05 * 0.2)).requires_grad_(), start.clone().requires_grad_()
    weights = {"a.weight": ours}
    mine = AdamW(weights, [Group(("a.weight",), 0.05)])
    reference = torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.2)
    step = make_step(weights, {"a.weight": start}, decoupled=True)
    for n in range(50):
        shift = theirs.detach() * (1 - 0.05 * 0.2)  # where torch takes its update from
        torch.testing.assert_close(ours.detach(), shift, rtol=1e-5, atol=1e-6)
        # The gradient at the same place for both.
        (task(ours) + l2.loss(step, alpha=0.2, beta=0.0, scope="kernels")).backward()
        theirs.grad = ours.grad.clone()
        mine.step(1.0)
        reference.step()
        if n < 49:
            with torch.no_grad():
                l2.after_step(step.weights, {}, {"a.weight": 0.05}, PartState(), alpha=0.2, beta=0.0, scope="kernels")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_optimum_of_a_quadratic(make_step) -> None:
    """(H + a I)^-1 H w* with H that is not diagonal."""
    rng = torch.Generator().manual_seed(2)
    root = torch.randn(4, 4, generator=rng)
    h, target = root @ root.T + torch.eye(4), torch.randn(4, 1, generator=rng)
    w = torch.zeros(4, 1, requires_grad=True)
    takes = Sgd({"a.weight": w}, [Group(("a.weight",), 0.05, 0.5)])
    step = make_step({"a.weight": w}, {"a.weight": torch.zeros(4, 1)})
    for _ in range(500):
        (((w - target).T @ h @ (w - target)).sum() / 2 + l2.loss(step, alpha=0.7, beta=0.0, scope="all")).backward()
        takes.step(1.0)
    torch.testing.assert_close(w.detach(), torch.linalg.solve(h + 0.7 * torch.eye(4), h @ target), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scope", ["kernels", "all"])
def test_each_kind_of_weight_has_its_own_strength(make_step, moved, scope) -> None:
    weights, start = moved
    l2.loss(make_step(weights, start), alpha=0.3, beta=0.7, scope=scope).backward()
    for name, w in weights.items():
        if scope == "kernels" and w.ndim < 2:
            assert w.grad is None, name
        else:
            torch.testing.assert_close(w.grad, (0.3 if name in start else 0.7) * w.detach())


def test_running_statistics_are_not_penalised(make_step, moved) -> None:
    weights, start = moved
    step = make_step(weights, start)
    step.weights = Weights(weights, start, buffers={"stem.bn.running_mean": torch.full((4,), 1e6)})
    assert l2.loss(step, alpha=1e-2, beta=1e-1, scope="all").item() < 10
