"""The end of a job in small."""

from pathlib import Path

import pytest

from models.build import build
from tests.toys import make_order, make_recipe, write_pack
from transfer.rehearsal import export_s, look_s, n_modules


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("rehearsal") / "pack")


def test_looking_costs_time_and_the_weights_are_counted_to_the_byte(pack: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(), pack, None, tmp_path)
    seconds, n_bytes = look_s(order, order.trials[0])
    state = build("tiny_smallnet", n_classes=3).state_dict()
    assert seconds > 0
    assert n_bytes == sum(t.numel() * t.element_size() for t in state.values())


def test_an_export_takes_longer_by_as_many_modules_as_a_network_has_more(pack: Path, tmp_path: Path) -> None:
    small = make_order(make_recipe(), pack, None, tmp_path)
    large = make_order(make_recipe("tiny_resnet"), pack, None, tmp_path)
    of_small, per_item = export_s(small, small.trials)
    of_both, _ = export_s(small, (*small.trials, *large.trials))
    assert of_small > 0
    assert per_item > 0
    assert of_both == pytest.approx(of_small * n_modules("tiny_resnet") / n_modules("tiny_smallnet"))
