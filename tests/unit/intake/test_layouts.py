import re

import pytest

from domain.dataset import Split
from domain.errors import Invalid
from intake.layouts import Layout, load, tasks
from intake.limits import Limits

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def layout_of(*names: str, **tables: str | bytes) -> Layout:
    """Tables are given as labels="…" for labels.csv, and may lie in a folder as root__labels."""
    files = {name.replace("__", "/") + ".csv": text for name, text in tables.items()}
    data = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    return load("classification").find_layout([*names, *files], data.__getitem__, Limits())


def found(layout: Layout) -> set[tuple[str, str, Split | None]]:
    return {tuple(candidate) for candidate in layout.candidates}  # type: ignore[misc]


def test_every_task_has_a_layout() -> None:
    assert "classification" in tasks()
    for task in tasks():
        assert callable(load(task).find_layout)
    with pytest.raises(Invalid, match=re.escape("there is no task 'poetry'; there are classification")):
        load("poetry")


@pytest.mark.parametrize("prefix", ["", "photos/", "a/b/photos/"])
def test_class_folders(prefix: str) -> None:
    layout = layout_of(f"{prefix}ants/1.jpg", f"{prefix}ants/deep/2.JPG", f"{prefix}bees/3.png")
    assert layout.name == "class_folders"
    assert [candidate.label for candidate in layout.candidates] == ["ants", "ants", "bees"]
    assert not layout.findings


@pytest.mark.parametrize("prefix", ["", "photos/"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(prefix: str, val: str) -> None:
    layout = layout_of(f"{prefix}train/ants/1.jpg", f"{prefix}{val}/bees/2.jpg", f"{prefix}test/ants/3.jpg")
    assert layout.name == "split_folders"
    assert [(c.label, c.split) for c in sorted(layout.candidates, key=lambda c: c.path[-5])] == [
        ("ants", TRAIN), ("bees", VAL), ("ants", TEST),
    ]  # fmt: skip


def test_train_alone_is_a_split_and_a_class_called_train_is_not() -> None:
    assert {c.split for c in layout_of("train/ants/1.jpg", "train/bees/2.jpg").candidates} == {TRAIN}
    assert found(layout_of("train/1.jpg", "car/2.jpg")) == {("train/1.jpg", "train", None), ("car/2.jpg", "car", None)}


def test_test_images_without_classes_are_listed() -> None:
    layout = layout_of("train/ants/1.jpg", "train/bees/2.jpg", "test/3.jpg")
    assert len(layout.candidates) == 2
    assert [(f.code, f.path) for f in layout.findings] == [("item_unlabelled", "test/3.jpg")]


def test_whatever_is_no_item_is_listed() -> None:
    stray = ["README.md", "__MACOSX/ants/._1.jpg", "ants/.DS_Store", ".ipynb_checkpoints/x.png", "ants/Thumbs.db",
             "bees/notes.txt", "more.csv", "ants/.ipynb_checkpoints/1-checkpoint.jpg", "ants/._2.jpg"]  # fmt: skip
    layout = layout_of(
        "ants/1.jpg", "bees/2.jpg", "loose.jpg", *[s for s in stray if s != "more.csv"], more="a,b\n1,2\n"
    )
    assert [c.path for c in layout.candidates] == ["ants/1.jpg", "bees/2.jpg"]
    assert {(f.code, f.path) for f in layout.findings} == {
        ("item_unlabelled", "loose.jpg"), *(("file_ignored", name) for name in stray),
    }  # fmt: skip


def test_image_formats_that_are_not_read_still_become_candidates() -> None:
    assert len(layout_of("a/1.heic", "a/2.svg", "b/no_suffix", "b/4.jpg").candidates) == 4


def test_class_names_are_made_printable_and_compared() -> None:
    layout = layout_of("Caf\u00e9/1.jpg", "Cafe\u0301/2.jpg", "caf\u00e9/3.jpg", "x\u202ey/4.jpg")
    assert {c.label for c in layout.candidates} == {"Café", "café", "x\\u202ey"}
    assert [f.code for f in layout.findings] == ["class_names_alike"]


def test_no_image_at_all() -> None:
    with pytest.raises(Invalid, match="dataset_empty"):
        layout_of("README.md", labels="path,label\n")


@pytest.mark.parametrize(
    "table",
    [
        "path,label\na.jpg,ant\nb.jpg,bee\n",
        "a.jpg,ant\nb.jpg,bee",
        "\ufefflabel;filename\r\nant;a.jpg\r\nbee;b.jpg\r\n\r\n",
        'image\tclass\n"a.jpg"\tant\n./b.jpg\t bee \n',
    ],
)
@pytest.mark.parametrize("folder", ["", "images/", "deep/er/"])
def test_csv(table: str, folder: str) -> None:
    layout = layout_of(f"{folder}a.jpg", f"{folder}b.jpg", labels=table)
    assert layout.name == "csv"
    assert found(layout) == {(f"{folder}a.jpg", "ant", None), (f"{folder}b.jpg", "bee", None)}


def test_csv_with_splits_and_unlisted_images() -> None:
    table = "path,label,split\na.jpg,ant,train\nb.jpg,bee,Validation\nc.jpg,ant,test\nd.jpg,bee,\n"
    layout = layout_of("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg", labels=table)
    assert found(layout) == {
        ("a.jpg", "ant", TRAIN), ("b.jpg", "bee", VAL), ("c.jpg", "ant", TEST), ("d.jpg", "bee", None),
    }  # fmt: skip
    assert [(f.code, f.path) for f in layout.findings] == [("item_unlabelled", "e.jpg")]


def test_csv_inside_the_enclosing_folder_and_under_another_name() -> None:
    assert layout_of("set/img/a.jpg", "set/img/b.jpg", set__labels="img/a.jpg,ant\nimg/b.jpg,bee\n").name == "csv"
    assert layout_of("img/a.jpg", "img/b.jpg", annotations="img/a.jpg,ant\nimg/b.jpg,bee\n").name == "csv"
    assert layout_of("ants/a.jpg", "bees/b.jpg", weather="mon,rain\ntue,sun\n").name == "class_folders"
    assert layout_of("x/a.jpg", "y/b.jpg", truth="path,label\nx/a.jpg,ant\ny/b.jpg,bee\n").name == "csv"


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("path,label\na.jpg,=cmd|' /C calc'!A0\n", 2),
        ("path,label\na.jpg,ant\nb.jpg,@SUM(A1)\n", 3),
        ("a.jpg,ant\nb.jpg,+cmd()\n", 2),
        ("a.jpg,ant\nb.jpg," + "x" * 10_000_000, 2),
        ("a.jpg,ant\nb.jpg," + "x" * 1000, 2),
        ("a.jpg,ant\nb.jpg,größe\n".encode("latin-1"), 2),
        ("path,label\na.jpg,ant\n".encode("utf-16"), 1),
        ("a.jpg,ant\nb.jpg,b\0e\n", 2),
        ("path,label\na.jpg,ant\nnot_there.jpg,bee\n", 3),
        ("path,label\na.jpg,\n", 2),
        ("path,label\n,ant\n", 2),
        ("a.jpg\n", 1),
        ("path,label,split\na.jpg,ant,sometimes\n", 2),
        ("a.jpg,ant\na.jpg,bee\n", 2),
        ('a.jpg,ant\nb.jpg,"bee\n', 2),
        ("path,label\n", None),
        ("", None),
    ],
)
def test_35_faults_of_a_csv_name_the_row(table: str | bytes, row: int | None) -> None:
    with pytest.raises(Invalid) as caught:
        layout_of("a.jpg", "b.jpg", labels=table)
    assert caught.value.code == "labels_invalid"
    assert caught.value.facts == {"path": "labels.csv", "row": row}
    assert len(caught.value.detail) < 400


def test_negative_numbers_are_labels() -> None:
    assert {c.label for c in layout_of("a.jpg", "b.jpg", labels="a.jpg,-1\nb.jpg,+1.5\n").candidates} == {"-1", "+1.5"}
