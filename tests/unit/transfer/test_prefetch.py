"""A thread that cuts the next batch changes no bit, and what goes wrong in it is met in the step that it was for."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toys import go, make_order, make_recipe, train
from tests.unit.transfer.test_resume import assert_same
from transfer import warm
from transfer.fit import Fit
from transfer.prefetch import Views
from transfer.setting import Setting
from transfer.tasks.classification import Problem
from transfer.views import Pictures

CASES: dict[str, dict[str, Any]] = {
    "new looks": {},
    "mixup": {"data": {"mixup_alpha": 0.2}},
    "drawn by a part": {"sampling": ("class_balanced", {})},
    "few looks, computed": {"data": {"views": 2}},
    "no looks but one": {"data": {"augmentation": 0.0, "flip": False}},
    "kept activations": {"schedule": ("freeze", {"depth": 2}), "data": {"augmentation": 0.0, "flip": False}},
}


@pytest.mark.parametrize("name", CASES)
def test_with_and_without_it_a_trial_has_the_same_bits(name: str, pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(steps=11, **CASES[name])
    fits: list[Fit] = []
    for prefetch in (False, True, True):
        order = make_order(recipe, pack, source, tmp_path / str(len(fits)), prefetch=prefetch)
        Path(order.scratch).mkdir()
        fits.append(train(order)[0])
        warm.forget()
    assert_same(fits[0], fits[1])
    assert_same(fits[1], fits[2])


@pytest.mark.parametrize("resumed_with", [False, True])
def test_a_trial_resumes_with_or_without_it(resumed_with: bool, pack: Path, source: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(steps=11), pack, source, tmp_path / "whole", prefetch=True)
    Path(order.scratch).mkdir()
    whole, _ = train(order)
    asked = 0

    def stopped(_: str) -> str:
        nonlocal asked
        asked += 1
        return "pause" if asked > 4 else "go"

    first = Fit(order, stopped=stopped)
    list(first)
    first.save(tmp_path / "saved")
    trial = order.trials[0].model_copy(update={"resume": str(tmp_path / "saved")})
    second = Fit(order.model_copy(update={"trials": (trial,), "prefetch": resumed_with}), stopped=go)
    list(second)
    assert_same(whole, second)


def views(pack: Path, source: Path, tmp_path: Path, **given: Any) -> tuple[Setting, Views]:
    order = make_order(make_recipe(), pack, source, tmp_path, prefetch=True, **given)
    setting = Setting(order, order.trials[0], go)
    return setting, Views(setting, 5)


def test_what_was_not_foreseen_is_cut_when_it_is_asked_for(pack: Path, source: Path, tmp_path: Path) -> None:
    setting, ahead = views(pack, source, tmp_path)
    first, second, third = np.arange(8), np.arange(8, 16), np.arange(16, 24)
    for items, epoch, coming in ((first, 0, second), (second, 0, third), (first, 1, third), (third, 2, third[:0])):
        expected = setting.problem.training_inputs(items, 5, epoch, setting.recipe.data)
        assert torch.equal(ahead.take(items, epoch, coming), expected)


def test_memory_that_is_short_beside_a_step_may_do_between_two(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, ahead = views(pack, source, tmp_path)
    cut = setting.problem.training_inputs
    expected = cut(np.arange(8, 16), 5, 0, setting.recipe.data)

    def short_of_memory(*given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise MemoryError
        return cut(*given)

    monkeypatch.setattr(setting.problem, "training_inputs", short_of_memory)
    ahead.take(np.arange(8), 0, np.arange(8, 16))
    assert torch.equal(ahead.take(np.arange(8, 16), 0, np.arange(0)), expected)


def test_what_else_goes_wrong_in_the_thread_is_met_in_the_step(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, ahead = views(pack, source, tmp_path)
    cut = setting.problem.training_inputs
    monkeypatch.setattr(
        setting.problem, "training_inputs", lambda items, *rest: cut(items, *rest) if items[0] == 0 else 1 / 0
    )
    ahead.take(np.arange(8), 0, np.arange(8, 16))
    with pytest.raises(ZeroDivisionError):
        ahead.take(np.arange(8, 16), 0, np.arange(0))


@pytest.mark.parametrize("prefetch", [True, False])
def test_all_but_the_first_batch_of_an_epoch_is_foreseen(
    prefetch: bool, pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_by: list[str] = []
    announced: list[list[int]] = []
    cut = Pictures.training

    def noted(self: Pictures, items: Any, *given: Any, **named: Any) -> torch.Tensor:
        cut_by.append("main" if threading.current_thread() is threading.main_thread() else "thread")
        return cut(self, items, *given, **named)

    monkeypatch.setattr(Pictures, "training", noted)
    monkeypatch.setattr(Problem, "announce", lambda _, items: announced.append(items.tolist()))
    order = make_order(make_recipe(steps=11), pack, source, tmp_path, prefetch=prefetch)
    fit, _ = train(order)
    assert fit.outcome("tr_1").state == "COMPLETE"
    n_epochs = 6  # of two batches of 16 of 36 items, the last of one
    if prefetch:
        assert sorted(cut_by) == ["main"] * n_epochs + ["thread"] * n_epochs  # the last one in vain
        assert announced == []
    else:
        assert cut_by == ["main"] * 11
        assert [len(items) for items in announced] == [16] * n_epochs
