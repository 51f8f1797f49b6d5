"""FSP against its definition written out, and what it cannot tell apart."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from domain.errors import Invalid
from models.build import build
from tests.toys import go, make_order, make_recipe
from transfer.bench import Bench
from transfer.features import fsp
from transfer.features.fsp import check, flow_distance, gram
from transfer.loop import Loop
from transfer.maps import tried
from transfer.phase import Plan
from transfer.setting import Setting

PARAMS = {"share": 0.3, "lr": 1e-3, "guide": "teacher"}


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def test_the_gram_matrix_written_out() -> None:
    a, b = maps(0, 2, 3, 4, 5), maps(1, 2, 6, 4, 5)
    expected = torch.zeros(2, 3, 6)
    for s in range(4):
        for t in range(5):
            expected += a[:, :, None, s, t] * b[:, None, :, s, t] / 20
    torch.testing.assert_close(gram(a, b), expected)


def test_constant_maps_give_an_outer_product() -> None:
    u, v = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0, 0.5])
    a, b = u.view(1, 2, 1, 1).expand(1, 2, 8, 8), v.view(1, 3, 1, 1).expand(1, 3, 4, 4)
    torch.testing.assert_close(gram(a, b)[0], torch.outer(u, v))


def test_the_larger_map_is_max_pooled() -> None:
    a, b = maps(0, 2, 3, 8, 8), maps(1, 2, 6, 4, 4)
    torch.testing.assert_close(gram(a, b), gram(torch.nn.functional.max_pool2d(a, 2), b))
    torch.testing.assert_close(gram(b, a), gram(a, b).mT)


def test_moving_pixels_of_both_maps_alike_changes_nothing() -> None:
    a, b = maps(0, 2, 3, 4, 4), maps(1, 2, 6, 4, 4)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    moved = [m.flatten(2)[:, :, order].view_as(m) for m in (a, b)]
    torch.testing.assert_close(gram(*moved), gram(a, b))
    assert flow_distance(moved, [a, b]) < 1e-10  # the features differ, the flows do not
    assert flow_distance([a.flip(3), b], [a, b]) > 0.01


def test_the_loss_is_the_squared_frobenius_norm() -> None:
    """And m n times the mean of squares that other codes take."""
    own, given = [maps(0, 2, 3, 4, 4), maps(1, 2, 6, 2, 2)], [maps(2, 2, 3, 4, 4), maps(3, 2, 6, 2, 2)]
    gap = gram(*own) - gram(*given)
    found = flow_distance(own, given)
    torch.testing.assert_close(found, torch.linalg.matrix_norm(gap).square().mean())
    torch.testing.assert_close(found, 18 * torch.nn.functional.mse_loss(gram(*own), gram(*given)))
    third = maps(4, 2, 5, 2, 2)
    torch.testing.assert_close(flow_distance([*own, third], [*given, third]) - found,
                               (gram(own[1], third) - gram(given[1], third)).square().sum((1, 2)).mean())  # fmt: skip


def test_two_phases_and_no_joint_loss() -> None:
    plan = Plan(stages=("stem", "layer1"), new=(), steps=10, n_train=9)
    first, second = fsp.phases(plan, **PARAMS)
    assert first.trainable == ("stem", "layer1")
    assert (first.weight("fsp", 0.5), first.weight("task", 0.5), first.share) == (1, 0, 0.3)
    assert {spec.lr for spec in first.optimizer.values()} == {1e-3}
    assert (second.weight("fsp", 0.5), second.weight("task", 0.5), second.begin) == (0, 1, "previous")
    assert second.trainable == plan.everything


def test_other_widths_are_refused_by_name() -> None:
    one, two = (tried(build(name, n_classes=3)) for name in ("tiny_resnet", "tiny_smallnet"))
    check("tiny_resnet", one, "tiny_resnet", one)
    with pytest.raises(Invalid, match=r"tiny_resnet has \[16, 32, 64\].*tiny_smallnet has \[4, 8, 16\]"):
        check("tiny_resnet", one, "tiny_smallnet", two)
    last = dict(list(one.items())[-1:])
    with pytest.raises(Invalid, match="share fewer"):
        check("tiny_resnet", last, "tiny_resnet", one)


def test_the_first_phase_learns_flows_without_labels(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(feature=("fsp", {"guide": "source"}), batch_norm="train")
    order = make_order(recipe, pack, source, tmp_path)
    setting = Setting(order, order.trials[0], go)
    bench = Bench(setting, 0)
    before = {name: tensor.clone() for name, tensor in bench.net.state_dict().items()}
    loop = Loop(bench, next(setting.parts[0].call("phases", bench.plan)), 0, 4)
    list(loop.train())
    assert set(loop.means()) == {"fsp"}
    assert all(torch.equal(before[n], t) == n.startswith("head") for n, t in bench.net.named_parameters())


def test_what_else_the_recipe_holds_counts_in_the_second_phase() -> None:
    """And a policy keeps its own rate in the first: `lr` is that of the flows."""
    plan = Plan(stages=("stem", "layer1"), new=("policy",), steps=10, n_train=9)
    first, second = fsp.phases(plan, **PARAMS)
    for term, slot in (("selective_joint", "sampling"), ("spottune", "surgery"), ("l2_sp", "regularizer")):
        assert second.weight(term, 0.5, slot) == 1
        assert first.weight(term, 0.5, slot) == (slot == "regularizer")
    assert second.weight("fsp", 0.5, "feature") == 0
    assert set(first.optimizer) == {"stem", "layer1"}
