"""FitNets: the hint loss by hand and at its least-squares optimum, and who is trained when."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from domain.errors import Invalid
from domain.lot import TeacherFiles
from models.build import build
from tests.toys import go, make_order, make_recipe
from transfer.bench import Bench
from transfer.features import fitnet
from transfer.features.fitnet import REGRESSOR, Regressor, hint_loss
from transfer.loop import Loop
from transfer.phase import Plan, Site, covers
from transfer.setting import Setting

PARAMS = {"share": 0.3, "lr": 1e-3, "guide": "teacher"}


def maps(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def site(teacher: Any = None) -> Site:
    return Site(rng=torch.Generator().manual_seed(1), n_classes=3, teacher=teacher)


def test_half_the_squared_distance_of_a_sample() -> None:
    own, hint = maps(0, 3, 4, 2, 2), maps(1, 3, 4, 2, 2)
    expected = np.mean([0.5 * np.sum((o - h) ** 2) for o, h in zip(own.numpy(), hint.numpy(), strict=True)])
    assert hint_loss(own, hint, nn.Identity()).item() == pytest.approx(expected, rel=1e-6)


def test_an_identity_between_equal_networks_loses_nothing() -> None:
    net, teacher = build("tiny_resnet", n_classes=3, seed=4).eval(), build("tiny_resnet", n_classes=3, seed=4).eval()
    net = fitnet.rebuild(net, site(teacher), **PARAMS).net.eval()
    regressor = net.get_submodule(REGRESSOR)
    nn.init.dirac_(regressor.conv.weight)
    x = maps(0, 2, 3, 32, 32)
    step: Any = SimpleNamespace(
        net=net, student=SimpleNamespace(features=net.look(x).features),
        teacher=SimpleNamespace(features=teacher.look(x).features),
    )  # fmt: skip
    assert fitnet.loss(step, **PARAMS).item() == 0
    with torch.no_grad():
        regressor.conv.weight.mul_(1.1)
    assert fitnet.loss(step, **PARAMS).item() > 0


def test_a_linear_regressor_is_best_at_least_squares() -> None:
    own, hint = maps(0, 6, 3, 4, 4), maps(1, 6, 5, 4, 4)
    regressor = Regressor("a", "b", 3, 5, rectified=False, rng=torch.Generator())
    rows = own.movedim(1, -1).reshape(-1, 3).numpy()
    wanted = hint.movedim(1, -1).reshape(-1, 5).numpy()
    best, *_ = np.linalg.lstsq(np.column_stack([rows, np.ones(len(rows))]), wanted, rcond=None)
    with torch.no_grad():
        regressor.conv.weight.copy_(torch.from_numpy(best[:3].T)[:, :, None, None])
        regressor.conv.bias.copy_(torch.from_numpy(best[3]))
    loss = hint_loss(own, hint, regressor)
    gradients = torch.autograd.grad(loss, list(regressor.parameters()))
    assert all(g.abs().max() < 1e-3 for g in gradients)
    residual = wanted - rows @ best[:3] - best[3]
    assert loss.item() == pytest.approx(0.5 * np.square(residual).sum() / 6, rel=1e-5)


def test_other_sizes_and_channels_are_bridged() -> None:
    regressor = Regressor("a", "b", 3, 5, rectified=True, rng=torch.Generator())
    assert hint_loss(maps(0, 2, 3, 8, 8), maps(1, 2, 5, 3, 4), regressor).isfinite()
    assert hint_loss(maps(0, 2, 3, 2, 2), maps(1, 2, 5, 3, 4), regressor).isfinite()


@pytest.mark.parametrize(
    ("teacher", "rectified"), [("tiny_resnet", True), ("tiny_smallnet", True), ("tiny_vit", False)]
)
def test_the_regressor_has_the_hints_width_and_nonlinearity(teacher: str, rectified: bool) -> None:
    guide = build(teacher, n_classes=3, seed=2)
    rebuilt = fitnet.rebuild(build("tiny_convnext", n_classes=3), site(guide), **PARAMS)
    regressor = rebuilt.net.get_submodule(REGRESSOR)
    assert isinstance(regressor, Regressor)
    maps_of_guide = guide.eval().look(maps(0, 1, 3, 32, 32)).features
    assert regressor.conv.out_channels == maps_of_guide[regressor.hint].shape[1]
    assert regressor.rectified == rectified
    assert rebuilt.train_only == (REGRESSOR,)


def test_the_same_seed_draws_the_same_regressor_and_nothing_else() -> None:
    build("tiny_resnet", n_classes=3)
    state = torch.get_rng_state()
    one, two = (fitnet.rebuild(build("tiny_resnet", n_classes=3), site(), **PARAMS).net for _ in range(2))
    assert torch.equal(one.get_submodule(REGRESSOR).conv.weight, two.get_submodule(REGRESSOR).conv.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_lies_above_is_trained_in_the_second_phase_alone() -> None:
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    plan = Plan(stages=stages, new=(REGRESSOR,), steps=10, n_train=9)
    first, second = fitnet.phases(plan, **PARAMS)
    assert first.trainable == ("stem", "layer1", "layer2", REGRESSOR)
    assert not covers(first.trainable, "layer3.0.conv1.weight")
    assert not covers(first.trainable, "head.weight")
    assert (first.weight("fitnet", 0), first.weight("task", 0), first.share) == (1, 0, 0.3)
    assert second.trainable == (*stages, "head")
    assert (second.weight("fitnet", 0), second.weight("task", 0), second.weight("x", 0, "distillation")) == (0, 1, 1)


def test_a_middle_without_a_map_is_refused() -> None:
    net = build("tiny_resnet", n_classes=3)
    net.taps = ("stem", "layer4")
    with pytest.raises(Invalid, match="layer2 of tiny_resnet has no map"):
        fitnet.rebuild(net, site(), **PARAMS)


def test_the_first_phase_moves_nothing_above(
    pack: Path, source: Path, teach: Callable[[Path], TeacherFiles], tmp_path: Path
) -> None:
    recipe = make_recipe(feature=("fitnet", {}), batch_norm="train")
    order = make_order(recipe, pack, source, tmp_path, teacher=teach(tmp_path / "teacher.safetensors"))
    setting = Setting(order, order.trials[0], go)
    bench = Bench(setting, 0)
    before = {name: tensor.clone() for name, tensor in bench.net.state_dict().items()}
    loop = Loop(bench, next(setting.parts[0].call("phases", bench.plan)), 0, 4)
    list(loop.train())
    moved = {name for name, tensor in bench.net.state_dict().items() if not torch.equal(before[name], tensor)}
    assert {name.partition(".")[0] for name in moved} == {"block1", "block2", REGRESSOR}
    assert {"block1.conv.weight", "block2.conv.weight", "regressor.conv.weight", "block2.bn.running_mean"} <= moved


def test_what_else_the_recipe_holds_counts_in_the_second_phase() -> None:
    """Data of the source beside the task, and what a policy may open: neither is left out in silence."""
    plan = Plan(stages=("stem", "layer1"), new=(REGRESSOR,), steps=10, n_train=9)
    first, second = fitnet.phases(plan, **PARAMS)
    for term, slot in (("selective_joint", "sampling"), ("spottune", "surgery"), ("l2_sp", "regularizer")):
        assert second.weight(term, 0.5, slot) == 1
        assert first.weight(term, 0.5, slot) == (slot == "regularizer")
    assert second.weight("fitnet", 0.5, "feature") == 0
