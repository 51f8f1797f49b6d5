"""What a phase trains and at what rate: groups, frozen stages, batch norm, the averaged weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from domain.recipe import Recipe
from tests.toys import make_order, make_recipe, write_source
from transfer.fold import FoldRun
from transfer.loop import Loop
from transfer.parts import bind_module
from transfer.phase import Curve, OptimizerSpec, Outcome, Phase, Plan
from transfer.setting import Setting


def open_run(recipe: Recipe, pack: Path, source: Path | None, tmp_path: Path, **given: Any) -> FoldRun:
    order = make_order(recipe, pack, source, tmp_path, **given)
    return FoldRun(Setting(order, order.trials[0], lambda _: "go"), 0)


def everything(run: FoldRun) -> Phase:
    return Phase(trainable=(*run.net.stage_names, "head"))


def test_the_rate_falls_from_the_head_to_the_stem(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(optimizer={"lr_head": 0.1, "inner_ratio": 0.5, "stage_decay": 0.2})
    run = open_run(recipe, pack, source, tmp_path)
    peak = Loop(run.bench, everything(run), 0, 10).optimizer.peak
    assert peak["head.weight"] == 0.1
    assert peak["block3.conv.weight"] == pytest.approx(0.05)
    assert peak["block2.bn.bias"] == pytest.approx(0.01)
    assert peak["block1.conv.weight"] == pytest.approx(0.002)


def test_new_stages_train_at_the_heads_rate_and_have_no_start(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(surgery=("reinit_above", {"depth": 2}), optimizer={"lr_head": 0.1, "inner_ratio": 0.5})
    run = open_run(recipe, pack, source, tmp_path)
    loop = Loop(run.bench, everything(run), 0, 10)
    assert loop.optimizer.peak["block3.conv.weight"] == 0.1
    assert loop.optimizer.peak["block2.conv.weight"] == pytest.approx(0.05)
    assert "block3.conv.weight" in loop.weights.new("kernels")[0]
    assert set(loop.weights.start) == {n for n in loop.weights if n.startswith(("block1", "block2"))}
    assert all(torch.equal(loop.weights[n], w) for n, w in loop.weights.start.items())
    assert all(loop.weights[n].data_ptr() != w.data_ptr() for n, w in loop.weights.start.items())


def test_a_phase_may_give_a_part_of_the_net_its_own_rate(pack: Path, source: Path, tmp_path: Path) -> None:
    run = open_run(make_recipe(), pack, source, tmp_path)
    phase = Phase(trainable=("block3", "head"), optimizer={"block3": OptimizerSpec(lr=0.7)})
    assert Loop(run.bench, phase, 0, 10).optimizer.peak["block3.bn.weight"] == 0.7


def norms(run: FoldRun) -> dict[str, torch.nn.BatchNorm2d]:
    return {n: m for n, m in run.net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}


@pytest.mark.parametrize(
    ("mode", "moves", "affine"), [("train", True, True), ("eval", False, True), ("frozen", False, False)]
)
def test_batch_norm_modes(mode: str, moves: bool, affine: bool, pack: Path, source: Path, tmp_path: Path) -> None:
    run = open_run(make_recipe(batch_norm=mode), pack, source, tmp_path)
    loop = run.loop = Loop(run.bench, everything(run), 0, 3)
    before = {n: t.clone() for n, t in run.net.state_dict().items()}
    for _ in loop.train():
        pass
    after = run.net.state_dict()
    for name, module in norms(run).items():
        assert module.training == moves
        assert torch.equal(before[f"{name}.running_mean"], after[f"{name}.running_mean"]) != moves
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"]) != affine
    assert not torch.equal(before["block1.conv.weight"], after["block1.conv.weight"])


def test_frozen_stages_keep_every_bit_even_after_train(pack: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "s.safetensors", "tiny_resnet")
    run = open_run(make_recipe("tiny_resnet", batch_norm="train", regularizer=("l2", {})), pack, source, tmp_path)
    loop = Loop(run.bench, Phase(trainable=("layer3", "layer4", "head")), 0, 6)
    before = {n: t.clone() for n, t in run.net.state_dict().items()}
    for _ in loop.train():
        loop.predict(run.bench.val)  # switches to eval and back
    for name, tensor in run.net.state_dict().items():
        frozen = name.startswith(("stem", "layer1", "layer2"))
        assert torch.equal(tensor, before[name]) == frozen, name


def test_predictions_are_those_of_the_averaged_weights(pack: Path, source: Path, tmp_path: Path) -> None:
    run = open_run(make_recipe(averaging=("ema", {"decay": 0.99}), batch_norm="train"), pack, source, tmp_path)
    loop = Loop(run.bench, everything(run), 0, 5)
    trail = []
    original = loop.optimizer.step

    def step(factor: float) -> None:
        original(factor)
        trail.append(run.net.state_dict()["head.weight"].clone())

    loop.optimizer.step = step  # type: ignore[method-assign]
    for _ in loop.train():
        pass
    average = trail[0]
    for t, weight in enumerate(trail[1:], start=1):
        keep = min(0.99, (1 + t) / (10 + t))
        average = keep * average + (1 - keep) * weight
    state = loop.states["averaging.ema"]
    torch.testing.assert_close(state.averaged["head.weight"], average)
    live = run.net.state_dict()["head.weight"].clone()
    averaged_logits = loop.predict(run.bench.val)
    assert torch.equal(run.net.state_dict()["head.weight"], live)
    state.averaged.clear()
    assert not np.allclose(loop.predict(run.bench.val), averaged_logits)


class TwoPhases:
    """A schedule as a test needs it: the head first, then everything but from the best; a loss of its own besides."""

    INPUT_GRADIENT = True
    seen: list[Outcome | None]

    def __init__(self) -> None:
        self.seen, self.progress, self.gradients = [], [], []

    def phases(self, plan: Plan) -> Any:
        self.seen.append((yield Phase(trainable=("head",), terms={"task": 1.0, "schedule": Curve(4, 0)}, share=0.5)))
        self.seen.append((yield Phase(trainable=plan.everything, begin="best", terms={"task": 2.0})))

    def loss(self, step: Any) -> torch.Tensor:
        self.progress.append(step.progress)
        gradient = step.student.input_gradient(step.student.logits.logsumexp(1))
        self.gradients.append(gradient)
        return gradient.square().sum() / len(gradient)


def test_phases_their_terms_and_the_gradient_of_inputs(pack: Path, source: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(steps=8), pack, source, tmp_path)
    setting = Setting(order, order.trials[0], lambda _: "go")
    part = TwoPhases()
    setting.parts = [bind_module("schedule", "two", part, {})]
    run = FoldRun(setting, 0)
    sights = list(run.run())
    assert [outcome.phase for outcome in part.seen if outcome] == [0, 1]
    assert [sight.phase for sight in sights] == [0] * 4 + [1] * 4
    assert part.progress == [0.0, 0.25, 0.5, 0.75]  # a term that a phase does not name counts nothing in it
    assert all(g.shape[1:] == (3, 32, 32) for g in part.gradients)
    assert "two" in sights[0].terms
    assert "two" not in sights[-1].terms
    assert sights[3].share == pytest.approx(0.5)
    assert sights[-1].share == 1.0


def test_input_gradients_agree_with_finite_differences(pack: Path, source: Path, tmp_path: Path) -> None:
    run = open_run(make_recipe(batch_norm="eval"), pack, source, tmp_path)
    run.setting.parts = run.bench.parts = [bind_module("feature", "probe", TwoPhases(), {})]
    loop = Loop(run.bench, everything(run), 0, 4)
    step = loop._step()
    gradient = step.student.input_gradient(step.student.logits[:, 0])
    run.net.eval()
    direction = torch.randn_like(step.inputs)
    direction /= direction.norm()
    with torch.no_grad():
        up, down = (run.net(step.inputs + s * 1e-2 * direction)[:, 0].sum() for s in (1, -1))
    torch.testing.assert_close((gradient * direction).sum(), (up - down) / 2e-2, rtol=2e-2, atol=1e-3)


def test_patience_ends_a_phase_and_spends_its_share(pack: Path, source: Path, tmp_path: Path) -> None:
    class Patient:
        def phases(self, plan: Plan) -> Any:
            yield Phase(trainable=("head",), patience=2)

    # A learning rate of nearly nothing: no evaluation is better than the first.
    order = make_order(make_recipe(steps=40, optimizer={"lr_head": 1e-12}), pack, source, tmp_path)
    setting = Setting(order, order.trials[0], lambda _: "go")
    setting.parts = [bind_module("schedule", "patient", Patient(), {})]
    sights = list(FoldRun(setting, 0).run())
    assert [s.step for s in sights] == [4, 5, 8, 12]  # at 5 trials are compared: that look costs no patience
    assert sights[-1].share == 1.0


def test_a_teacher_of_its_own_past_is_pinned(pack: Path, source: Path, tmp_path: Path) -> None:
    class Again:
        def phases(self, plan: Plan) -> Any:
            yield Phase(trainable=plan.everything, share=0.5)
            yield Phase(trainable=plan.everything, begin="start", teacher="previous")

    class Follow:
        NEEDS = ("teacher",)
        agreed: list[float]

        def __init__(self) -> None:
            self.agreed = []

        def loss(self, step: Any) -> torch.Tensor:
            if run.outcomes:  # the second generation
                self.agreed.append(float(step.teacher.logits.detach().sum()))
                return (step.student.logits - step.teacher.logits).square().mean()
            return step.task_loss

    order = make_order(make_recipe(steps=4, data={"augmentation": 0.0, "flip": False}), pack, source, tmp_path)
    setting = Setting(order, order.trials[0], lambda _: "go")
    follow = Follow()
    setting.parts = [
        bind_module("distillation", "follow", follow, {}),
        bind_module("schedule", "again", Again(), {}),
    ]
    run = FoldRun(setting, 0)
    list(run.run())
    assert len(follow.agreed) == 2
    teacher = run.bench.previous
    assert teacher is not None
    assert not teacher.training
    assert not any(w.requires_grad for w in teacher.parameters())
    assert not torch.equal(teacher.state_dict()["head.weight"], run.net.state_dict()["head.weight"])


def test_a_phase_that_does_not_train_the_task_is_not_measured(pack: Path, source: Path, tmp_path: Path) -> None:
    """Its head knows nothing yet: such a value would mislead the pruner, and could be kept as the best."""

    class FirstItself:
        def phases(self, plan: Plan) -> Any:
            yield Phase(trainable=plan.stages, terms={"pull": 1.0}, share=0.5)
            yield Phase(trainable=plan.everything)

        def loss(self, step: Any) -> Any:
            return step.student.pooled.square().mean()

    order = make_order(make_recipe(steps=8), pack, source, tmp_path)
    setting = Setting(order, order.trials[0], lambda _: "go")
    setting.parts = [bind_module("feature", "pull", FirstItself(), {})]
    sights = list(FoldRun(setting, 0).run())
    assert {sight.value is None for sight in sights if sight.phase == 0} == {True}
    assert {sight.value is None for sight in sights if sight.phase == 1} == {False}


def test_what_surgery_gives_a_rate_of_its_own_keeps_it(pack: Path, source: Path, tmp_path: Path) -> None:
    run = open_run(make_recipe(), pack, source, tmp_path)
    run.bench.rates = {"block2.conv": 0.25}
    phase = Phase(trainable=run.bench.plan.everything, optimizer={"block2": OptimizerSpec(lr=0.5)})
    peak = Loop(run.bench, phase, 0, 4).optimizer.peak
    assert peak["block2.conv.weight"] == 0.25
    assert peak["block2.bn.weight"] == 0.5
