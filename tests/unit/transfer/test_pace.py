"""Which precision a trial is trained in where the order leaves it open."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from domain.lot import LotOrder
from domain.recipe import Recipe
from tests.toys import go, make_order, make_recipe, write_source
from transfer import pace, warm
from transfer.fit import Fit
from transfer.setting import Setting


@pytest.fixture(autouse=True)
def fresh() -> None:
    warm.forget()
    pace.KNOWN.clear()


@pytest.fixture
def order(pack: Path, source: Path, tmp_path: Path) -> LotOrder:
    return open_order(make_recipe(), pack, source, tmp_path)


def open_order(recipe: Recipe, pack: Path, source: Path, tmp_path: Path, **given: object) -> LotOrder:
    order = make_order(recipe, pack, source, tmp_path, **given)
    return order.model_copy(update={"precision": "auto", "paces": str(tmp_path / "paces")})


def setting_of(order: LotOrder) -> Setting:
    return Setting(order, order.trials[0], go)


def notes(order: LotOrder, of: str = "precision") -> list[Path]:
    return [file for file in sorted(Path(str(order.paces)).glob("*.json")) if of in json.loads(file.read_text())]


def change(file: Path, answer: str, of: str = "precision") -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {of: answer}))
    pace.KNOWN.clear()  # as in another process


def test_both_are_timed_once_and_the_answer_is_kept_for_the_machine(order: LotOrder) -> None:
    first = setting_of(order).precision
    (note,) = notes(order)
    told = json.loads(note.read_text())
    assert told["precision"] == first
    assert all(told["seconds"][precision] > 0 for precision in ("float32", "bfloat16"))
    for other in ("bfloat16", "float32"):
        change(note, other)
        assert setting_of(order).precision == other
    note.write_text("{")
    pace.KNOWN.clear()
    assert setting_of(order).precision in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("float32", "bfloat16", "wanted"),
    [(1.0, 0.95, "float32"), (1.0, 0.5, "bfloat16"), (1.0, 2.0, "float32"), (0.004, 0.001, "float32")],
)
def test_the_faster_one_is_taken_by_a_margin_unless_it_is_quick_anyway(
    float32: float, bfloat16: float, wanted: str
) -> None:
    assert pace.chosen({"float32": float32, "bfloat16": bfloat16}) == wanted


def test_what_trains_a_head_on_kept_looks_is_not_timed(pack: Path, source: Path, tmp_path: Path) -> None:
    data = {"augmentation": 0.5, "flip": True, "views": 2}
    for schedule in (("freeze", {"depth": 32}), ("linear_probe", {})):
        order = open_order(make_recipe(schedule=schedule, data=data), pack, source, tmp_path)
        assert setting_of(order).precision == "float32"
    assert notes(order) == []
    every_step = make_recipe(schedule=("freeze", {"depth": 32}), data=data | {"views": 0})
    setting_of(open_order(every_step, pack, source, tmp_path))
    assert len(notes(order)) == 1, "its frozen stages run in every step"


@pytest.mark.parametrize(
    ("of", "here", "there"), [("precision", "bfloat16", "float32"), ("layout", "contiguous", "channels_last")]
)
def test_a_trial_that_goes_on_keeps_its_precision_and_layout(
    of: str, here: str, there: str, pack: Path, source: Path, tmp_path: Path
) -> None:
    order = open_order(make_recipe(), pack, source, tmp_path)
    setting_of(order)
    (note,) = notes(order, of)
    change(note, here, of)
    setting_of(order)  # whatever follows from it is found out too
    for other in notes(order):
        change(other, here if of == "precision" else "float32")
    whole = Fit(order, stopped=go)
    reports = list(whole)

    told: list[str] = []
    half = Fit(order, stopped=lambda _: "pause" if told else "go")
    for report in half:
        told.append(report.trial_id)
    half.save(tmp_path / "point")
    assert len(told) < len(reports)
    change(note, there, of)  # on a machine where that is faster
    rest = Fit(open_order(make_recipe(), pack, source, tmp_path, resume=tmp_path / "point"), stopped=go)
    list(rest)
    assert rest.outcome("tr_1").facts["precision"] == (here if of == "precision" else "float32")
    assert rest._trials["tr_1"]._found.channels_last == (of == "precision")
    one, two = (load_file(fit.outcome("tr_1").files["weights"]) for fit in (whole, rest))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("backbone", ["tiny_smallnet", "tiny_mobilenet_v2"])
def test_either_layout_trains_alike_and_the_faster_one_is_kept_for_the_machine(
    backbone: str, pack: Path, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "s.safetensors", backbone)
    recipe = make_recipe(
        backbone, steps=8, schedule=("freeze", {"depth": 1}), data={"augmentation": 0.0, "flip": False}
    )
    found = {}
    for layout in ("channels_last", "contiguous"):
        order = open_order(recipe, pack, source, tmp_path, activations=str(tmp_path / "kept"))
        setting_of(order)
        (note,) = notes(order, "layout")
        assert all(json.loads(note.read_text())["seconds"][name] > 0 for name in ("channels_last", "contiguous"))
        change(note, layout, "layout")
        assert setting_of(order).channels_last == (layout == "channels_last")
        fit = Fit(order, stopped=go)
        list(fit)
        found[layout] = load_file(fit.outcome("tr_1").files["weights"])
    for name, tensor in found["contiguous"].items():
        torch.testing.assert_close(tensor, found["channels_last"][name], rtol=1e-3, atol=1e-4)
    assert len(list((tmp_path / "kept").iterdir())) == 2, "activations in another layout are others"


def test_each_cut_is_timed_in_either_layout(pack: Path, source: Path, tmp_path: Path) -> None:
    for depth in (0, 1, 2, 1):
        recipe = make_recipe(schedule=("freeze", {"depth": depth}))
        setting_of(open_order(recipe, pack, source, tmp_path))
    noted = [
        json.loads(note.read_text())["n_frozen"] for note in notes(open_order(recipe, pack, source, tmp_path), "layout")
    ]
    assert sorted(noted) == [0, 1, 2]


@pytest.mark.parametrize(
    ("channels_last", "contiguous", "wanted"),
    [
        (1.0, 0.95, "channels_last"),
        (1.0, 0.5, "contiguous"),
        (1.0, 2.0, "channels_last"),
        (0.004, 0.001, "channels_last"),
    ],
)
def test_another_layout_has_to_win_by_a_margin(channels_last: float, contiguous: float, wanted: str) -> None:
    seconds: dict[pace.Layout, float] = {"channels_last": channels_last, "contiguous": contiguous}
    assert pace.layout({"backbone": wanted, "n": str(seconds)}, None, lambda: seconds) == wanted


def test_networks_without_convolutions_are_not_asked(pack: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "s.safetensors", "tiny_vit")
    order = open_order(make_recipe("tiny_vit"), pack, source, tmp_path)
    assert not setting_of(order).channels_last
    assert notes(order, "layout") == []


@pytest.mark.parametrize(
    ("seconds", "n"),
    [({1: 1.0}, 1), ({1: 1.0, 2: 0.9}, 1), ({1: 1.0, 2: 0.6, 4: 0.55}, 2), ({1: 1.0, 2: 2.0, 4: 0.1}, 1)],
)
def test_twice_as_many_threads_have_to_win_by_a_margin(seconds: dict[int, float], n: int) -> None:
    assert pace.chosen_threads(seconds) == n
