"""A recipe may train on a part of the items: the same part whoever asks, every class in it, val as it was."""

from pathlib import Path

import numpy as np
import pytest

from domain.lot import LotOrder
from tests.toys import make_order, make_recipe, train
from transfer.setting import TRAIN, VAL, Setting


def order_of(fraction: float, pack: Path, source: Path, folder: Path, *, seed: int = 0, n_folds: int = 1) -> LotOrder:
    recipe = make_recipe(seed=seed, steps=2)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"fraction": fraction})})
    return make_order(recipe, pack, source, folder, n_folds=n_folds)


def setting_of(fraction: float, pack: Path, source: Path, folder: Path, **facts: int) -> Setting:
    order = order_of(fraction, pack, source, folder, **facts)
    return Setting(order, order.trials[0], lambda _: "go")


@pytest.mark.parametrize(("fraction", "kept"), [(1.0, 12), (0.5, 6), (0.3, 4), (0.25, 3), (0.01, 1)])
def test_every_class_keeps_its_part_rounded_up(
    fraction: float, kept: int, pack: Path, source: Path, tmp_path: Path
) -> None:
    setting = setting_of(fraction, pack, source, tmp_path)
    train_items, val = setting.items(0)
    assert np.bincount(setting.problem.labels[train_items]).tolist() == [kept] * 3
    split = np.asarray(setting.pack.split)
    assert set(train_items) <= set(np.flatnonzero(split == TRAIN))
    assert val.tolist() == np.flatnonzero(split == VAL).tolist()
    assert train_items.tolist() == sorted(train_items)


def test_the_seed_of_the_trial_draws_the_part(pack: Path, source: Path, tmp_path: Path) -> None:
    parts = [
        setting_of(0.5, pack, source, tmp_path / str(n), seed=seed).items(0)[0].tolist()
        for n, seed in enumerate((1, 1, 2))
    ]
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]


def test_each_fold_has_a_part_of_its_own_items_and_is_judged_on_all_of_val(
    pack: Path, source: Path, tmp_path: Path
) -> None:
    whole = setting_of(1.0, pack, source, tmp_path / "1", n_folds=3)
    part = setting_of(0.4, pack, source, tmp_path / "2", n_folds=3)
    for fold in range(4):
        (all_items, all_val), (items, val) = whole.items(fold), part.items(fold)
        assert set(items) < set(all_items)
        assert val.tolist() == all_val.tolist()


def test_a_trial_on_a_part_leaves_nothing_behind_for_one_on_all(pack: Path, source: Path, tmp_path: Path) -> None:
    """A Fisher information, which trials of one process share, is worked out on the items that a trial has."""
    recipe = make_recipe(steps=2, regularizer=("l2_sp_fisher", {}))
    cheap = recipe.model_copy(update={"data": recipe.data.model_copy(update={"fraction": 0.3})})
    alone, _ = train(make_order(recipe.model_copy(update={"seed": 5}), pack, source, tmp_path / "1"))
    train(make_order(cheap, pack, source, tmp_path / "2"))
    after, _ = train(make_order(recipe.model_copy(update={"seed": 5}), pack, source, tmp_path / "3"))
    assert alone.outcome("tr_1").metrics == after.outcome("tr_1").metrics
