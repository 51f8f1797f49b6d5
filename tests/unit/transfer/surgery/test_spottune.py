"""SpotTune: the two networks it chooses between, the drawn one-hot rows and their gradient, the bookkeeping."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from transfer.phase import covers
from transfer.step import Step, Weights
from transfer.surgery.spottune import global_k, gumbel_one_hot, loss, mix, outermost

BACKBONES = [
    "tiny_resnet",
    "tiny_mobilenet_v2",
    "tiny_efficientnet",
    "tiny_convnext",
    "tiny_vit",
    "tiny_swin",
    "tiny_bit",
]


def always(operated: Any, *, tuned: bool) -> None:
    """Let the policy answer one way, whatever it sees."""
    last = operated.net.get_submodule("policy.last")
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.view(-1, 2).copy_(torch.tensor([0.0, 1.0] if tuned else [1.0, 0.0]))


def blocks_of(operated: Any) -> list[Tensor]:
    return [w for n, w in operated.net.named_parameters() if covers(operated.net.block_names, n)]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_at_the_start_every_policy_gives_the_same_logits(
    operate: Callable[..., Any], backbone: str, pictures: Tensor, shake: Callable[..., None]
) -> None:
    operated = operate("spottune", backbone)
    with torch.no_grad():
        expected = operated.before(pictures)
        for seed in range(3):
            shake(operated.net.get_submodule("policy").parameters(), seed=seed)
            assert torch.equal(operated.net(pictures), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_frozen_is_the_source_and_all_tuned_the_fine_tuned_network(
    operate: Callable[..., Any], backbone: str, pictures: Tensor, shake: Callable[..., None]
) -> None:
    operated = operate("spottune", backbone)
    shake(blocks_of(operated))
    tuned = copy.deepcopy(operated.before)
    tuned.load_state_dict({n: operated.net.state_dict()[n] for n in tuned.state_dict()})
    with torch.no_grad():
        always(operated, tuned=False)
        assert torch.equal(operated.net(pictures), operated.before(pictures))
        always(operated, tuned=True)
        assert torch.equal(operated.net(pictures), tuned(pictures))
        assert not torch.equal(tuned(pictures), operated.before(pictures))


def test_each_picture_takes_its_own_way(operate: Callable[..., Any], shake: Callable[..., None]) -> None:
    operated = operate("spottune", "tiny_resnet")
    shake([*blocks_of(operated), *operated.net.get_submodule("policy").parameters()], by=0.3)
    x = 3 * torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    net, policy = operated.net, operated.net.get_submodule("policy")
    with torch.no_grad():
        ways = policy(x).argmax(-1)
        assert len(ways.unique(dim=0)) > 1
        # The same ways, walked by hand: frozen and tuned blocks one after the other.
        now, steps = net.get_submodule("stem")(x), zip(net.block_names, ways.T, strict=True)
        tuned = copy.deepcopy(operated.before)
        tuned.load_state_dict({n: net.state_dict()[n] for n in tuned.state_dict()})
        for block, way in steps:
            both = operated.before.get_submodule(block)(now), tuned.get_submodule(block)(now)
            now = torch.stack([both[int(w)][i] for i, w in enumerate(way)])
        torch.testing.assert_close(net(x), net.head(now.mean((2, 3))))


def test_evaluation_is_deterministic_and_training_draws(operate: Callable[..., Any], pictures: Tensor) -> None:
    policy = operate("spottune", "tiny_resnet").net.get_submodule("policy")
    with torch.no_grad():
        first = policy.decide(pictures)
        assert all(torch.equal(policy.decide(pictures), first) for _ in range(5))
        assert set(first.unique().tolist()) <= {0.0, 1.0}
        policy.train()
        assert len({tuple(policy.decide(pictures).flatten().tolist()) for _ in range(20)}) > 1
    assert policy.draws_at_random


def test_the_drawn_rows_are_one_hot_and_as_frequent_as_softmax_says() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.3, -0.8]]).expand(20_000, 2)
    rows = gumbel_one_hot(logits, tau=5.0)
    assert torch.equal(rows.sort(1).values, torch.tensor([[0.0, 1.0]]).expand_as(rows))
    # The Gumbel-max trick: whatever tau, a draw is one of softmax(logits).
    assert rows[:, 1].mean().item() == pytest.approx(1 / (1 + math.exp(1.1)), abs=0.015)


@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_the_gradient_is_that_of_the_softmax_that_was_drawn(tau: float) -> None:
    z = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(5)
    (found,) = torch.autograd.grad((gumbel_one_hot(z, tau) * weight).sum(), z)
    torch.manual_seed(5)
    noise = -torch.log(-torch.log(torch.rand(6, 4, 2)))
    (expected,) = torch.autograd.grad((torch.softmax((z + noise) / tau, -1) * weight).sum(), z)
    torch.testing.assert_close(found, expected)
    assert (found != 0).all()


def test_noise_of_zero_and_logits_of_any_size_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[1e4, -1e4], [0.0, 0.0]], requires_grad=True)
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    gumbel_one_hot(logits, 0.5).square().sum().backward()
    assert logits.grad.isfinite().all()


def test_the_policy_learns_where_the_paths_differ(
    operate: Callable[..., Any], pictures: Tensor, shake: Callable[..., None]
) -> None:
    operated = operate("spottune", "tiny_resnet")
    shake(blocks_of(operated))
    net = operated.net.train()
    functional.cross_entropy(net(pictures), torch.tensor([0, 1, 2, 0])).backward()
    policy = net.get_submodule("policy")
    assert (policy.last.bias.grad != 0).all()
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in policy.parameters() if w.ndim > 1)
    assert all(w.grad is None for w in net.get_submodule("frozen").parameters())


def test_the_frozen_blocks_stay_in_evaluation_mode(operate: Callable[..., Any], pictures: Tensor) -> None:
    operated = operate("spottune", "tiny_resnet")
    frozen = operated.net.get_submodule("frozen")
    before = {n: t.clone() for n, t in frozen.state_dict().items()}
    operated.net.train()(pictures)
    assert not any(m.training for fork in frozen.children() for m in fork.modules())
    assert all(torch.equal(t, before[n]) for n, t in frozen.state_dict().items())


@pytest.mark.parametrize("outside", ["frozen", "tuned"])
def test_what_trains(operate: Callable[..., Any], outside: str) -> None:
    operated = operate("spottune", "tiny_mobilenet_v2", outside=outside, agent_lr=0.003)
    policy = {n for n in operated.added if n.startswith("policy.")}
    known = {n for n, _ in operated.before.named_parameters()}
    inside = {n for n in known if covers((*operated.net.block_names, "head"), n)}
    assert operated.trained == policy | (inside if outside == "frozen" else known)
    assert operated.rebuilt.rates == {"policy": 0.003}
    assert operated.rebuilt.whole
    blocks = sum(w.numel() for n, w in operated.before.named_parameters() if covers(operated.net.block_names, n))
    assert sum(w.numel() for n, w in operated.added.items() if n not in policy) == blocks


def test_it_cannot_begin_behind_the_first_stage(operate: Callable[..., Any], pictures: Tensor) -> None:
    net = operate("spottune", "tiny_resnet").net
    with torch.no_grad():
        inner = net.prefix(pictures, 1)
        net.suffix(pictures, 0)
        with pytest.raises(RuntimeError, match="picture"):
            net.suffix(inner, 1)


def test_mix_and_outermost() -> None:
    one, other = torch.full((2, 3, 1), 5.0), torch.full((2, 3, 1), 7.0)
    assert mix(torch.tensor([1.0, 0.0]), one, other)[:, 0, 0].tolist() == [5.0, 7.0]
    assert outermost(("a.0", "a.0.b", "a.01", "c")) == ("a.0", "a.01", "c")


def test_global_k_is_its_formula() -> None:
    decisions = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    p = [1.0, 0.0, 0.5]
    expected = 0.7 * (sum(p) - 0.4 * 3) ** 2 - 0.2 * 0.5 * math.log(0.5)
    assert global_k(decisions, k=0.4, k_weight=0.7, entropy_weight=0.2).item() == pytest.approx(expected, rel=1e-5)
    assert global_k(torch.ones(2, 3), k=1.0, k_weight=1.0, entropy_weight=1.0) == 0


def test_global_k_looks_at_the_decisions_of_the_step(operate: Callable[..., Any], pictures: Tensor) -> None:
    net = operate("spottune", "tiny_resnet").net.train()
    params: dict[str, Any] = {"tau": 5.0, "agent_lr": 0.01, "outside": "frozen", "k": 0.0}

    def never(*_: object) -> Any:
        raise AssertionError("nobody else is looked at")

    class Seen:
        def __init__(self, x: Tensor) -> None:
            self.logits = net(x)

    step = Step(
        inputs=pictures, targets=torch.tensor([0, 1, 2, 0]), weights=Weights({}, {}), progress=0.0, seed=(0,),
        prepared={}, net=net, look=Seen, source=never, teacher=never, task_loss=functional.cross_entropy,  # type: ignore[arg-type]
    )  # fmt: skip
    assert loss(step, **params, k_weight=0.0, entropy_weight=0.0) == 0
    decisions = net.get_submodule("policy").routes.decisions
    found = loss(step, **params, k_weight=2.0, entropy_weight=0.0)
    assert found.item() == pytest.approx(2 * decisions.mean(0).sum().item() ** 2, rel=1e-5)
    found.backward()
    assert net.get_submodule("policy.last").bias.grad.abs().sum() > 0
