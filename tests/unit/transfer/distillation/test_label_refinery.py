"""Label refinery: labels of the crop, not of the image; the same as born-again where it should be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import log_softmax, softmax
from torch import Tensor

from domain.lot import LotOrder, TeacherFiles
from tests.toys import go, make_order, make_recipe, train
from transfer.bench import Bench
from transfer.distillation import label_refinery
from transfer.loop import Loop
from transfer.phase import Phase, Plan
from transfer.setting import Setting
from transfer.step import Step

Draw, Taught = Callable[..., Tensor], Callable[..., Step]
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
PLAN = Plan(stages=("a", "b"), new=(), steps=90, n_train=50)


def test_the_loss_is_cross_entropy_with_the_refined_labels_alone(logits: Draw, taught: Taught) -> None:
    z, v = logits(0), logits(1)
    expected = -(softmax(v.numpy(), 1) * log_softmax(z.numpy(), 1)).sum(1).mean()
    for targets in (TARGETS, TARGETS.flip(0)):
        found = label_refinery.loss(taught(z, v, targets), refinery="self", chain=1)
        assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_gradient_is_that_of_the_divergence(logits: Draw, taught: Taught) -> None:
    z, v = logits(0).requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(label_refinery.loss(taught(z, v, TARGETS), refinery="self", chain=1), z)
    np.testing.assert_allclose(
        gradient.numpy(), (softmax(z.detach().numpy(), 1) - softmax(v.numpy(), 1)) / 6, atol=1e-12
    )  # fmt: skip


@pytest.mark.parametrize("chain", [1, 2, 3])
def test_the_chain_begins_with_labels_or_with_the_teacher(carried_out: Callable[..., list[Phase]], chain: int) -> None:
    own = carried_out(label_refinery.phases(PLAN, refinery="self", chain=chain))
    assert [phase.teacher for phase in own] == ["none", *["previous"] * chain]
    given = carried_out(label_refinery.phases(PLAN, refinery="teacher", chain=chain))
    assert [phase.teacher for phase in given] == ["given", *["previous"] * (chain - 1)]
    assert label_refinery.NEEDS_BY == {"refinery": {"teacher": "teacher"}}


def trial(distillation: tuple[str, dict[str, Any]], pack: Path, source: Path, folder: Path, **given: Any) -> LotOrder:
    teacher = given.pop("teacher", None)
    recipe = make_recipe(distillation=distillation, steps=8, **given)
    return make_order(recipe, pack, source, folder, teacher=teacher)


def test_on_fixed_views_of_one_architecture_it_is_born_again(pack: Path, source: Path, tmp_path: Path) -> None:
    ended = []
    for name, params in (("label_refinery", {"chain": 1}), ("born_again", {"generations": 1})):
        order = trial((name, params), pack, source, tmp_path / name, data={"augmentation": 0.0, "flip": False})
        fit, _ = train(order)
        ended.append(load_file(fit.outcome("tr_1").files["weights"]))
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())


def test_the_refined_label_is_that_of_the_crop(
    pack: Path, source: Path, tmp_path: Path, teach: Callable[[Path], TeacherFiles]
) -> None:
    """The same image, another epoch: another label with random crops, the same one without; rows sum to 1."""
    teacher = teach(tmp_path / "teacher.safetensors")
    for augmentation, differ in ((1.0, True), (0.0, False)):
        order = trial(
            ("label_refinery", {"refinery": "teacher"}), pack, source, tmp_path, teacher=teacher,
            data={"augmentation": augmentation, "flip": False},
        )  # fmt: skip
        bench = Bench(Setting(order, order.trials[0], go), 0)
        loop = Loop(bench, Phase(trainable=("head",)), 0, 8)
        views = [
            bench.setting.problem.training_inputs(bench.train[:6], loop.seed, epoch, bench.recipe.data)
            for epoch in (0, 1)
        ]
        refined = [torch.softmax(bench.look_teacher(v).logits, 1) for v in views]
        assert torch.equal(*views) != differ
        assert torch.equal(*refined) != differ
        torch.testing.assert_close(refined[0].sum(1), torch.ones(6))
