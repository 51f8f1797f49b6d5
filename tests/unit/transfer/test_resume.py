"""A trial that was interrupted anywhere goes on to the very bits of one that was not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from domain.lot import LotOrder, TeacherFiles
from tests.toys import go, make_order, make_recipe, train, write_source
from transfer import warm
from transfer.fit import Fit
from transfer.setting import Setting

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"regularizer": ("l2_sp", {"scope": "all"})},
    "adamw": {"optimizer": {"name": "adamw", "lr_head": 3e-3}, "regularizer": ("l2", {})},
    "average": {"averaging": ("ema", {"decay": 0.9}), "batch_norm": "train"},
    "mixup": {"data": {"mixup_alpha": 0.2, "label_smoothing": 0.1}},
    "balanced": {"sampling": ("class_balanced", {})},
    "attention": {"feature": ("attention", {"beta": 10.0})},
    "renewed": {"surgery": ("reinit_above", {"depth": 2})},
    "cached": {"schedule": ("freeze", {"depth": 2}), "data": {"augmentation": 0.0, "flip": False}},
    "random layers": {"backbone": "tiny_convnext"},
}


def interrupted(order: LotOrder, folder: Path, at_step: int) -> tuple[Fit, list[float | None]]:
    """The lot, paused before step `at_step` (of the whole trial), saved, and resumed as a new process would."""
    asked = 0

    def stopped(_: str) -> str:
        nonlocal asked
        asked += 1
        return "pause" if asked > at_step else "go"

    first = Fit(order, stopped=stopped)
    values = [report.value for report in first]
    assert first.outcome("tr_1").state == "PAUSED"
    first.save(folder)
    warm.forget()
    trial = order.trials[0].model_copy(update={"resume": str(folder)})
    second = Fit(order.model_copy(update={"trials": (trial,)}), stopped=go)
    values += [report.value for report in second]
    return second, values


def files_of(fit: Fit) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    with np.load(outcome.files["predictions"]) as saved:
        return load_file(outcome.files["weights"]), saved["logits"]


def assert_same(one: Fit, two: Fit) -> None:
    (weights, logits), (others, other_logits) = files_of(one), files_of(two)
    assert weights.keys() == others.keys()
    for name in weights:
        np.testing.assert_array_equal(weights[name], others[name], err_msg=name)
    np.testing.assert_array_equal(logits, other_logits)
    assert one.outcome("tr_1").value == two.outcome("tr_1").value


def test_a_paused_trial_leaves_its_network_to_the_next(pack: Path, source: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(steps=11), pack, source, tmp_path / "whole")
    whole, _ = train(order)
    setting = Setting(order, order.trials[0], go)
    warm.forget()
    net, _ = setting.borrow(0)
    setting.give_back(net)
    asked = iter(["go"] * 5)
    paused = Fit(order, stopped=lambda _: next(asked, "pause"))
    list(paused)
    paused.save(tmp_path / "point")
    assert setting.borrow(0)[0] is not net  # it may still be asked for what it stands at
    paused.let_go("tr_1")
    again, _ = setting.borrow(0)
    assert again is net
    setting.give_back(again)
    trial = order.trials[0].model_copy(update={"resume": str(tmp_path / "point")})
    resumed, _ = train(order.model_copy(update={"trials": (trial,)}))
    assert_same(whole, resumed)


@pytest.mark.parametrize("name", CASES)
def test_resuming_in_mid_epoch_changes_no_bit(name: str, pack: Path, source: Path, tmp_path: Path) -> None:
    given = dict(CASES[name])
    backbone = given.pop("backbone", "tiny_smallnet")
    weights = source if backbone == "tiny_smallnet" else write_source(tmp_path / "s.safetensors", backbone)
    recipe = make_recipe(backbone, steps=11, **given)
    whole, reports = train(make_order(recipe, pack, weights, tmp_path / "whole"))
    # 36 items in batches of 16: two steps an epoch, so 5 steps in is the middle of the third.
    again, values = interrupted(make_order(recipe, pack, weights, tmp_path / "parts"), tmp_path / "point", 5)
    assert_same(whole, again)
    assert values == [report.value for report in reports]


def test_same_seed_same_bits_and_another_seed_others(pack: Path, source: Path, tmp_path: Path) -> None:
    fits = [
        train(make_order(make_recipe(seed=seed), pack, source, tmp_path / str(place)))[0]
        for place, seed in enumerate((3, 3, 4))
    ]
    assert_same(fits[0], fits[1])
    assert not np.array_equal(files_of(fits[0])[1], files_of(fits[2])[1])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("at_step", [0, 3, 8, 12, 21])
def test_folds_resume_too(at_step: int, optimizer: str, pack: Path, source: Path, tmp_path: Path) -> None:
    """Three fits of 6 steps and a closing one: paused before and in the first, in the second, between two, in the
    closing one."""
    recipe = make_recipe(steps=6, optimizer={"name": optimizer, "lr_head": 0.01})
    whole, _ = train(make_order(recipe, pack, source, tmp_path / "whole", n_folds=3))
    again, _ = interrupted(make_order(recipe, pack, source, tmp_path / "p", n_folds=3), tmp_path / "point", at_step)
    assert_same(whole, again)


def test_a_trial_paused_again_while_it_prepares_keeps_the_point_it_began_from(
    pack: Path, source: Path, tmp_path: Path
) -> None:
    """Paused in the second fold, resumed, and paused before that fold stands again."""
    recipe = make_recipe(steps=8, feature=("co_tuning", {"weight": 1.0}))
    whole, _ = train(make_order(recipe, pack, source, tmp_path / "whole", n_folds=3))
    order, reported = make_order(recipe, pack, source, tmp_path / "parts", n_folds=3), []
    first = Fit(order, stopped=lambda _: "pause" if reported and reported[-1].fold == 1 else "go")
    for report in first:
        reported.append(report)
    assert first.n_steps
    points = [tmp_path / "point 1", tmp_path / "point 2"]
    first.save(points[0])
    warm.forget()
    resumed = order.trials[0].model_copy(update={"resume": str(points[0])})
    second = Fit(order.model_copy(update={"trials": (resumed,)}), stopped=lambda _: "pause")
    assert list(second) == []
    assert (second.outcome("tr_1").state, second.n_steps) == ("PAUSED", None)
    second.save(points[1])
    third, reports = train(make_order(recipe, pack, source, tmp_path / "again", n_folds=3, resume=points[1]))
    assert_same(whole, third)
    assert (reports[0].fold, reports[0].step > reported[-1].step) == (1, True), "no step is taken twice"
    assert reports[0].cost_s > reported[-1].cost_s


def test_a_linear_probe_resumes_between_folds(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(schedule=("linear_probe", {}))
    whole, _ = train(make_order(recipe, pack, source, tmp_path / "whole", n_folds=3))
    again, _ = interrupted(make_order(recipe, pack, source, tmp_path / "p", n_folds=3), tmp_path / "point", 2)
    assert_same(whole, again)


def test_resuming_after_each_report(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(steps=8, averaging=("ema", {}))
    whole, _ = train(make_order(recipe, pack, source, tmp_path / "whole", n_folds=2))
    running = Fit(make_order(recipe, pack, source, tmp_path / "saving", n_folds=2), stopped=go)
    points = []
    for place, _ in enumerate(running):
        running.save(tmp_path / f"point {place}")
        points.append(tmp_path / f"point {place}")
    assert len(points) > 6
    for point in points:
        order = make_order(recipe, pack, source, tmp_path / "again", n_folds=2, resume=point)
        again, reports = train(order)
        assert_same(whole, again)
        assert [r.cost_s for r in reports] == sorted(r.cost_s for r in reports)


def test_a_point_of_another_recipe_is_not_used(pack: Path, source: Path, tmp_path: Path) -> None:
    running = Fit(make_order(make_recipe(seed=1), pack, source, tmp_path / "a"), stopped=go)
    next(iter(running))
    running.save(tmp_path / "point")
    fresh, _ = train(make_order(make_recipe(seed=2), pack, source, tmp_path / "b"))
    given, _ = train(make_order(make_recipe(seed=2), pack, source, tmp_path / "c", resume=tmp_path / "point"))
    assert_same(fresh, given)
    assert given.outcome("tr_1").facts["resumed"] is False


def test_distillation_resumes(pack: Path, source: Path, tmp_path: Path, teach: Callable[[Path], TeacherFiles]) -> None:
    recipe = make_recipe(steps=7, distillation=("soft_targets", {}))
    teacher = teach(tmp_path / "t.safetensors")
    whole, _ = train(make_order(recipe, pack, source, tmp_path / "whole", teacher=teacher))
    again, _ = interrupted(make_order(recipe, pack, source, tmp_path / "p", teacher=teacher), tmp_path / "point", 3)
    assert_same(whole, again)
