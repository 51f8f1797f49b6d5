"""Freezing: what is frozen keeps every bit, nothing frozen is fine-tuning, everything frozen is a linear probe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.toys import go, make_order, make_recipe, train, write_source
from transfer.bench import Bench
from transfer.closed_form import logits_of, solve_path
from transfer.evaluate import softmax
from transfer.loop import Loop
from transfer.phase import Plan
from transfer.schedules import freeze
from transfer.setting import Setting

STRENGTH = 0.05


def trained(pack: Path, source: Path, folder: Path, **given: Any) -> Mapping[str, Tensor]:
    fit, _ = train(make_order(make_recipe("tiny_resnet", **given), pack, source, folder))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    return load_file(outcome.files["weights"])


@pytest.fixture
def residual(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source.safetensors", "tiny_resnet")


@pytest.mark.parametrize("depth", [0, 2, 5, 32])
def test_frozen_stages_keep_every_bit_of_weights_and_statistics(
    pack: Path, residual: Path, tmp_path: Path, depth: int
) -> None:
    weights = trained(
        pack, residual, tmp_path, schedule=("freeze", {"depth": depth}), regularizer=("l2", {}), batch_norm="train",
        steps=5,
    )  # fmt: skip
    stages = ("stem", "layer1", "layer2", "layer3", "layer4")
    for name, tensor in load_file(residual).items():
        if not name.startswith("head"):
            same = torch.equal(weights[name], tensor)
            assert same == (name.partition(".")[0] in stages[:depth]), name


def test_at_depth_zero_it_is_fine_tuning(pack: Path, residual: Path, tmp_path: Path) -> None:
    one = trained(pack, residual, tmp_path / "one", schedule=("freeze", {"depth": 0}), steps=5)
    two = trained(pack, residual, tmp_path / "two", steps=5)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_what_surgery_added_is_trained_wherever_it_lies(plan: Plan) -> None:
    added = Plan(stages=("a", "b", "c"), new=("a.adapter", "c"), steps=1, n_train=1)
    (phase,) = freeze.phases(added, depth=2)
    assert phase.trainable == ("c", "head", "a.adapter")
    (phase,) = freeze.phases(plan, depth=3)
    assert phase.trainable == ("head",)


def test_everything_frozen_ends_at_the_linear_probe(pack: Path, residual: Path, tmp_path: Path) -> None:
    """Full batches on the same features with the same penalty: the optimum that the closed form finds at once."""
    recipe = make_recipe(
        "tiny_resnet", schedule=("freeze", {"depth": 32}), regularizer=("l2", {"beta": STRENGTH}), steps=1000,
        optimizer={"lr_head": 0.3, "grad_clip": 0.0}, batch_norm="train",
        data={"augmentation": 0.0, "flip": False, "batch_size": 36},
    )  # fmt: skip
    order = make_order(recipe, pack, residual, tmp_path)
    bench = Bench(Setting(order, order.trials[0], go), 0)
    x, val = (
        torch.cat([bench.net.features(inputs).detach() for inputs, _ in bench.batches(items)]).double().numpy()
        for items in (bench.train, bench.val)
    )
    answers = solve_path(x, bench.train_labels, 3, np.array([STRENGTH]))
    loop = Loop(bench, next(freeze.phases(bench.plan, depth=32)), 0, 1000)
    before = softmax(loop.predict(bench.val))
    for _ in loop.train():
        pass
    expected = softmax(logits_of(answers, val)[0])
    assert np.abs(before - expected).max() > 0.1
    np.testing.assert_allclose(softmax(loop.predict(bench.val)), expected, atol=1e-3)
