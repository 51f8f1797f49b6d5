"""What is prepared from a source dataset is worked out again where its folder was written anew."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from tests.toys import go, make_order, make_recipe, write_pack
from transfer.bench import Bench
from transfer.sampling import class_subset, selective_joint
from transfer.setting import Setting


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("class_subset", lambda prepared: int(prepared[class_subset.CHOSEN].sum())),  # k is more than there are
        ("selective_joint", lambda prepared: prepared[selective_joint.NEAREST].shape[1] // 6),  # of 10, 6 for train
    ],
)
def test_another_source_in_the_same_folder_counts(
    pack: Path, source: Path, tmp_path: Path, name: str, known: Callable[[dict[str, Tensor]], int]
) -> None:
    for n_classes in (4, 5):
        shutil.rmtree(tmp_path / "source_pack", ignore_errors=True)
        folder = write_pack(tmp_path / "source_pack", n_classes=n_classes, n_per_class=10, seed=3)
        order = make_order(make_recipe(sampling=(name, {})), pack, source, tmp_path, source_pack=folder)
        assert known(Bench(Setting(order, order.trials[0], go), 0).prepared) == n_classes
