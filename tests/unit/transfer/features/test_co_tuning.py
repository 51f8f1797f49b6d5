"""Co-tuning: the category relationship by hand, the loss by its gradient, the head that it adds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional

from domain.errors import Invalid
from models.build import build
from tests.toys import go, make_order, make_recipe
from transfer.bench import Bench
from transfer.features import co_tuning
from transfer.features.co_tuning import RELATION, relation, targets_of
from transfer.phase import Site
from transfer.setting import Setting


def site(head: dict[str, torch.Tensor] | None) -> Site:
    return Site(rng=torch.Generator(), n_classes=3, source_head=head)


def test_the_relationship_is_a_mean_per_class() -> None:
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    labels = torch.tensor([0, 0, 2])
    found = relation([(p, labels)], 3)
    torch.testing.assert_close(found[0], torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(found[2], torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(found[1], p.mean(0))  # nobody of that class
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    torch.testing.assert_close(relation(zip(p.split(1), labels.split(1), strict=True), 3), found)


def test_sure_and_distinct_sources_give_a_permutation() -> None:
    labels = torch.tensor([2, 0, 1, 2, 0, 1])
    own = torch.tensor([1, 2, 0])[labels]  # target class c looks like source class (c + 1) mod 3
    found = relation([(functional.one_hot(own, 3).float(), labels)], 3)
    torch.testing.assert_close(found, torch.eye(3).roll(1, 1))


def test_mixed_targets_mix_the_relationship() -> None:
    table = torch.softmax(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), 1)
    hard = torch.tensor([0, 3])
    torch.testing.assert_close(targets_of(table, functional.one_hot(hard, 4).float()), targets_of(table, hard))
    mixed = torch.tensor([[0.3, 0.0, 0.0, 0.7]])
    torch.testing.assert_close(targets_of(table, mixed)[0], 0.3 * table[0] + 0.7 * table[3])


def test_the_gradient_is_softmax_minus_relationship() -> None:
    net = build("tiny_resnet", n_classes=3, seed=1)
    head = {"weight": torch.randn(5, net.feature_dim), "bias": torch.randn(5)}
    rebuilt = co_tuning.rebuild(net, site(head), weight=2.0)
    assert rebuilt.train_only == ("source_head",)
    added = rebuilt.net.get_submodule("source_head")
    torch.testing.assert_close(dict(added.state_dict()), head)
    pooled = torch.randn(4, net.feature_dim, requires_grad=True)
    table, targets = torch.softmax(torch.randn(3, 5), 1), torch.tensor([0, 1, 2, 1])
    step: Any = SimpleNamespace(
        net=rebuilt.net, prepared={RELATION: table}, targets=targets, student=SimpleNamespace(pooled=pooled)
    )
    co_tuning.loss(step, weight=2.0).backward()
    q = torch.softmax(pooled.detach() @ head["weight"].T + head["bias"], 1)
    torch.testing.assert_close(pooled.grad, 2.0 * (q - table[targets]) @ head["weight"] / 4)
    assert added.weight.grad is not None


def test_the_head_draws_nothing_and_writes_to_nobody() -> None:
    net = build("tiny_resnet", n_classes=3)
    head = {"weight": torch.zeros(5, net.feature_dim), "bias": torch.zeros(5)}
    state = torch.get_rng_state()
    added = co_tuning.rebuild(net, site(head), weight=1.0).net.get_submodule("source_head")
    with torch.no_grad():
        added.bias.add_(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert head["bias"].sum() == 0


@pytest.mark.parametrize(
    "head", [None, {"0.weight": torch.zeros(2, 2)}, {"weight": torch.zeros(5, 3), "bias": torch.zeros(5)}]
)
def test_no_linear_source_head_no_co_tuning(head: dict[str, torch.Tensor] | None) -> None:
    with pytest.raises(Invalid, match="source"):
        co_tuning.rebuild(build("tiny_resnet", n_classes=3), site(head), weight=1.0)


def test_it_is_prepared_from_the_sources_own_head(pack: Path, source: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(feature=("co_tuning", {})), pack, source, tmp_path)
    bench = Bench(Setting(order, order.trials[0], go), 0)
    inputs, targets = next(bench.batches(bench.train, 99))
    with torch.no_grad():
        p = bench.setting.source(inputs).softmax(1)
    expected = torch.stack([p[targets == c].mean(0) for c in range(3)])
    torch.testing.assert_close(bench.prepared[RELATION], expected)
    assert expected.shape == (3, 7)
    head = bench.net.get_submodule("source_head")
    assert torch.equal(head.weight, bench.setting.source.head.weight)
