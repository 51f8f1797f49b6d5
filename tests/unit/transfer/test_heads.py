"""Heads trained together: each ends where it would have ended by itself."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from domain.lot import LotOrder
from domain.recipe import Recipe
from tests.toys import go, make_order, make_recipe
from transfer import heads, warm
from transfer.fit import Fit

LOOKS = {"fixed": {"augmentation": 0.0, "flip": False}, "views": {"augmentation": 0.5, "views": 2}}
ONE_BY_ONE: list[dict[str, Any]] = [
    {"seed": 1},
    {"seed": 2, "optimizer": {"lr_head": 0.5, "grad_clip": 0.1}, "regularizer": ("l2", {"beta": 0.05})},
    {"seed": 3, "optimizer": {"momentum": 0.0, "warmup_frac": 0.3}, "regularizer": ("l2_sp", {"beta": 0.1})},
    {"seed": 4, "optimizer": {"grad_clip": 0.0}, "regularizer": ("l2", {"beta": 0.1, "scope": "all"})},
    {"seed": 5, "data": {"label_smoothing": 0.1}, "regularizer": ("gl_sp", {})},
]


HOUR_S = 3600.0


class Clock:
    """An hour passes between two looks."""

    def __init__(self) -> None:
        self._looks = count()

    def perf_counter(self) -> float:
        return HOUR_S * next(self._looks)


@pytest.fixture(autouse=True)
def fresh() -> None:
    warm.forget()


def recipes(looks: dict[str, Any]) -> list[Recipe]:
    return [
        make_recipe(
            "tiny_smallnet", steps=30, schedule=("freeze", {"depth": 9}),
            **{**given, "data": {"batch_size": 8, **looks, **given.get("data", {})}},
        )
        for given in ONE_BY_ONE
    ]  # fmt: skip


def lot(found: list[Recipe], pack: Path, source: Path, scratch: Path, **given: Any) -> LotOrder:
    order = make_order(found[0], pack, source, scratch, **given)
    trials = [
        order.trials[0].model_copy(update={"trial_id": f"tr_{n}", "number": n, "recipe": recipe})
        for n, recipe in enumerate(found)
    ]
    return order.model_copy(update={"trials": tuple(trials)})


@pytest.mark.parametrize("n_folds", [1, 3])
@pytest.mark.parametrize("looks", LOOKS)
def test_each_head_equals_its_own_run(
    looks: str, n_folds: int, pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if n_folds == 1:  # two at a time, and one that is left
        monkeypatch.setattr(heads, "_near", lambda *_: [slice(0, 2), slice(2, 4), slice(4, 6)])
    found = recipes(LOOKS[looks])
    joint = Fit(lot(found, pack, source, tmp_path / "joint", n_folds=n_folds), stopped=go)
    reports = list(joint)
    assert len(heads.RUNS._things) > 0  # they were trained together
    for n, recipe in enumerate(found):
        warm.forget()
        order = lot([recipe], pack, source, tmp_path / f"alone-{n}", n_folds=n_folds)
        alone = Fit(order, stopped=go)
        own = list(alone)
        assert len(heads.RUNS._things) == 0
        told = [r for r in reports if r.trial_id == f"tr_{n}"]
        assert [(r.step, r.share, r.fold) for r in told] == [(r.step, r.share, r.fold) for r in own]
        for mine, theirs in zip(told, own, strict=True):
            assert mine.terms == pytest.approx(theirs.terms, abs=1e-5)
        one, two = (
            load_file(fit.outcome(name).files["weights"]) for fit, name in ((joint, f"tr_{n}"), (alone, "tr_0"))
        )
        for name in one:
            np.testing.assert_allclose(one[name], two[name], atol=1e-6, err_msg=name)


def test_each_bears_its_part_of_the_time(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training them took an hour by this clock, and each bears a fifth; the first, in whose time it was, gives away the
    rest."""
    monkeypatch.setattr(heads, "time", Clock())
    found = recipes(LOOKS["fixed"])
    fit = Fit(lot(found, pack, source, tmp_path), stopped=go)
    list(fit)
    costs = [fit.outcome(f"tr_{n}").cost_s for n in range(len(found))]
    assert costs[1:] == pytest.approx([HOUR_S / len(found)] * (len(found) - 1), abs=60)
    assert costs[0] == pytest.approx(HOUR_S / len(found) - HOUR_S, abs=60), "its own clock has not seen the hour"


def test_heads_that_differ_in_more_are_trained_apart(pack: Path, source: Path, tmp_path: Path) -> None:
    first, *_ = recipes(LOOKS["fixed"])
    others = [
        first.model_copy(update={"steps": 31}),
        first.model_copy(update={"data": first.data.model_copy(update={"batch_size": 16})}),
        first.model_copy(update={"schedule": None}),
    ]
    fit = Fit(lot([first, *others], pack, source, tmp_path), stopped=go)
    list(fit)
    assert len(heads.RUNS._things) == 0
    assert all(fit.outcome(f"tr_{n}").state == "COMPLETE" for n in range(4))


def test_one_that_diverges_fails_alone(pack: Path, source: Path, tmp_path: Path) -> None:
    found = recipes(LOOKS["fixed"])[:3]
    wild = found[1].model_copy(
        update={"optimizer": found[1].optimizer.model_copy(update={"lr_head": 1e30, "grad_clip": 0.0})}
    )
    fit = Fit(lot([found[0], wild, found[2]], pack, source, tmp_path), stopped=go)
    list(fit)
    assert [fit.outcome(f"tr_{n}").state for n in range(3)] == ["COMPLETE", "FAILED", "COMPLETE"]
    assert fit.outcome("tr_1").error_code == "diverged"


def test_a_pause_in_between_changes_nothing(pack: Path, source: Path, tmp_path: Path) -> None:
    found = recipes(LOOKS["views"])[:3]
    whole = Fit(lot(found, pack, source, tmp_path / "whole"), stopped=go)
    list(whole)
    warm.forget()
    told: list[str] = []
    half = Fit(lot(found, pack, source, tmp_path / "half"), stopped=lambda t: "pause" if told.count(t) >= 2 else "go")
    for report in half:
        told.append(report.trial_id)
    for n, recipe in enumerate(found):
        assert half.outcome(f"tr_{n}").state == "PAUSED"
        half.save(tmp_path / f"point-{n}", f"tr_{n}")
        warm.forget()
        order = lot([recipe], pack, source, tmp_path / f"rest-{n}", resume=tmp_path / f"point-{n}")
        rest = Fit(order, stopped=go)
        list(rest)
        one, two = (load_file(fit.outcome(name).files["weights"]) for fit, name in ((whole, f"tr_{n}"), (rest, "tr_0")))
        for name in one:
            np.testing.assert_allclose(one[name], two[name], atol=1e-6, err_msg=name)
