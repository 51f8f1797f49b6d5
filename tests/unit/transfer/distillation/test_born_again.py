"""Born-again generations: the loss by hand, their phases, and what each begins with and learns from."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch import Tensor
from torch.nn import functional

from tests.toys import go, make_order, make_recipe
from transfer.distillation import born_again
from transfer.fold import FoldRun
from transfer.generations import lineage, soft_cross_entropy
from transfer.phase import Phase, Plan
from transfer.setting import Setting
from transfer.step import Step

Draw, Taught = Callable[..., Tensor], Callable[..., Step]
TARGETS = torch.tensor([0, 1, 2, 3, 0, 1])
PLAN = Plan(stages=("a", "b"), new=(), steps=90, n_train=50)
ALONE = {"generations": 1, "ensemble": False}


@pytest.mark.parametrize("labels", [False, True])
def test_the_gradient(logits: Draw, taught: Taught, labels: bool) -> None:
    """dL/dz = (q - p) / B, with labels (q - y) / B besides."""
    z, v = logits(0).requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(born_again.loss(taught(z, v, TARGETS), labels=labels, **ALONE), z)
    q, p = softmax(z.detach().numpy(), 1), softmax(v.numpy(), 1)
    expected = (q - p) / 6 + (labels * (q - np.eye(4)[TARGETS])) / 6
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-12)


def test_a_teacher_that_is_certain_gives_cross_entropy(logits: Draw, taught: Taught) -> None:
    z, certain = logits(0), 1e3 * functional.one_hot(TARGETS, 4).double()
    found = born_again.loss(taught(z, certain, TARGETS), labels=False, **ALONE)
    torch.testing.assert_close(found, functional.cross_entropy(z, TARGETS))


def test_without_labels_they_do_not_matter(logits: Draw, taught: Taught) -> None:
    z, v = logits(0), logits(1)
    one, two = (born_again.loss(taught(z, v, t), labels=False, **ALONE) for t in (TARGETS, TARGETS.flip(0)))
    assert torch.equal(one, two)


def test_soft_cross_entropy_is_a_mean_over_the_batch_of_a_sum_over_classes(logits: Draw) -> None:
    z, p = logits(0), torch.softmax(logits(1), 1)
    by_hand = [-(p[b].numpy() * (z[b].numpy() - logsumexp(z[b].numpy()))).sum() for b in range(6)]
    assert soft_cross_entropy(z, p).item() == pytest.approx(np.mean(by_hand), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("ensemble", [False, True])
def test_generations(carried_out: Callable[..., list[Phase]], n: int, ensemble: bool) -> None:
    found = carried_out(born_again.phases(PLAN, generations=n, labels=False, ensemble=ensemble))
    assert [phase.teacher for phase in found] == ["none", *["previous"] * n]
    assert {phase.begin for phase in found} == {"start"}
    assert {phase.trainable for phase in found} == {("a", "b", "head")}
    assert {phase.keep for phase in found} == {"member" if ensemble else "best"}
    assert [phase.share for phase in found] == [1 / (n + 1)] * n + [None]


def test_a_lineage_that_a_teacher_begins_has_no_generation_of_labels(carried_out: Callable[..., list[Phase]]) -> None:
    assert [phase.teacher for phase in carried_out(lineage(PLAN, 3, first="teacher"))] == [
        "given", "previous", "previous",
    ]  # fmt: skip


def open_run(pack: Path, source: Path, tmp_path: Path, ensemble: bool = False, **given: object) -> FoldRun:
    part = ("born_again", {"ensemble": ensemble})
    order = make_order(make_recipe(distillation=part, **given), pack, source, tmp_path)  # type: ignore[arg-type]
    return FoldRun(Setting(order, order.trials[0], go), 0)


def test_a_generation_learns_from_the_one_before_and_begins_at_the_source(
    pack: Path, source: Path, tmp_path: Path
) -> None:
    run = open_run(pack, source, tmp_path, steps=8)
    start = {n: t.clone() for n, t in run.net.state_dict().items()}
    began: dict[str, Tensor] = {}
    begin_again = run.bench.begin_again

    def note() -> None:
        begin_again()
        began.update({n: t.clone() for n, t in run.net.state_dict().items()})

    run.bench.begin_again = note  # type: ignore[method-assign]
    ended: dict[str, Tensor] = {}
    for _ in run.run():
        if len(run.outcomes) == 1 and not ended:
            ended = {n: t.clone() for n, t in run.net.state_dict().items()}
    assert [outcome.steps for outcome in run.outcomes] == [4, 4]
    teacher = run.bench.previous
    assert teacher is not None
    assert not teacher.training
    assert all(torch.equal(t, ended[n]) for n, t in teacher.state_dict().items())
    for name, tensor in start.items():
        assert torch.equal(began[name], tensor) == (not name.startswith("head")), name
    assert any(not torch.equal(t, ended[n]) for n, t in run.net.state_dict().items())


def test_an_ensemble_is_the_mean_of_the_probabilities_of_its_generations(
    pack: Path, source: Path, tmp_path: Path
) -> None:
    run = open_run(pack, source, tmp_path, ensemble=True, steps=8)
    list(run.run())
    assert len(run.members) == 2
    mean = np.mean([softmax(m.logits, 1) for m in run.members if m.logits is not None], axis=0)
    assert run.logits is not None
    np.testing.assert_allclose(softmax(run.logits, 1), mean, atol=1e-6)
