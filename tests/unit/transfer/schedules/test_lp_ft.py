"""LP-FT: fine-tuning begins at the exact linear probe."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tests.toys import go, make_order, make_recipe, train
from transfer.fold import FoldRun
from transfer.phase import Phase, Plan
from transfer.schedules import lp_ft
from transfer.setting import Setting


def test_phases(plan: Plan, carried_out: Callable[..., list[Phase]]) -> None:
    probe, tuning = carried_out(lp_ft.phases(plan))
    assert (probe.trainable, probe.solve) == (("head",), "closed_form")
    assert (tuning.trainable, tuning.solve, tuning.begin) == (("a", "b", "c", "head"), "gradient", "previous")


def test_without_a_learning_rate_it_is_the_linear_probe(pack: Path, source: Path, tmp_path: Path) -> None:
    ended, said = [], []
    for name in ("linear_probe", "lp_ft"):
        recipe = make_recipe(schedule=(name, {}), batch_norm="eval", steps=4, optimizer={"lr_head": 1e-30})
        fit, _ = train(make_order(recipe, pack, source, tmp_path / name))
        outcome = fit.outcome("tr_1")
        ended.append(load_file(outcome.files["weights"]))
        said.append(np.load(outcome.files["predictions"])["logits"])
    for name, tensor in ended[0].items():
        torch.testing.assert_close(ended[1][name], tensor, atol=1e-9, rtol=1e-6)
    np.testing.assert_allclose(said[0], said[1], atol=1e-4)


def test_fine_tuning_has_all_the_steps_and_never_ends_below_the_probe(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(schedule=("lp_ft", {}), batch_norm="eval", steps=6, data={"augmentation": 0.0, "flip": False})
    order = make_order(recipe, pack, source, tmp_path)
    run = FoldRun(Setting(order, order.trials[0], go), 0)
    sights = run.run()
    next(sights)
    state = run.net.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in run.bench.start.items())
    list(sights)
    assert [outcome.steps for outcome in run.outcomes] == [0, 6]
    assert run.outcomes[0].choice is not None
    probe = run.outcomes[0].value
    assert run.best is not None
    assert probe is not None
    assert run.best.value >= probe
