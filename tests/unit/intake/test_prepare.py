import hashlib
import itertools
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from domain.dataset import N_FOLDS, Manifest, Split
from domain.errors import Invalid
from intake.limits import Limits
from intake.prepare import prepare
from intake.prepared import open_prepared, read_manifest

Files = dict[str, bytes]
Prepare = Callable[..., Manifest]
Folders = Callable[..., Files]


@pytest.fixture
def run(archive: Callable[..., Path], tmp_path: Path) -> Prepare:
    def build(files: Files, name: str = "upload.zip", limits: Limits | None = None, **options: Any) -> Manifest:
        path = archive(files, name)
        return prepare(path, tmp_path / "items.zip", task="classification", options=options, limits=limits)

    return build


def codes(manifest: Manifest) -> list[tuple[str, str | None]]:
    return sorted((f.code, f.path) for f in manifest.findings if f.code != "few_items_per_class")


def test_prepared_zip_holds_the_original_bytes(run: Prepare, folders: Folders, tmp_path: Path) -> None:
    files = folders({"ants": 12, "bees": 8})
    manifest = run(files)
    assert read_manifest(tmp_path / "items.zip") == manifest
    with zipfile.ZipFile(tmp_path / "items.zip") as items:
        assert set(items.namelist()) == {
            "manifest.json",
            "facts.json",
            "rows.npy",
            *(item.member for item in manifest.items),
        }
        assert all(info.compress_type == zipfile.ZIP_STORED for info in items.infolist())
    with open_prepared(tmp_path / "items.zip") as prepared:
        assert prepared.manifest == manifest.model_copy(update={"items": ()})
        for row, item in enumerate(manifest.items):
            data = prepared.read(row)
            assert data == files[item.path]
            assert item.id == hashlib.sha256(data).hexdigest()
            assert manifest.classes[item.label] == item.path.split("/")[0]
            assert (item.width, item.height) == (24, 20)
            assert item.fold in (range(-1, 0) if item.split == Split.TEST else range(N_FOLDS))
    assert [path.name for path in tmp_path.iterdir()].count("items.zip") == 1
    assert not list(tmp_path.glob("*.partial"))


def test_statistics_count_what_is_there(run: Prepare, folders: Folders) -> None:
    statistics = run(folders({"ants": 20, "bees": 40})).statistics
    assert (statistics.n_items, statistics.n_classes) == (60, 2)
    assert statistics.per_split == {"train": 42, "val": 9, "test": 9}
    assert statistics.per_class["bees"] == {"train": 28, "val": 6, "test": 6}
    assert statistics.width_quantiles == (24,) * 5
    assert statistics.split_source == "made"


def test_order_and_format_and_enclosing_folder_change_nothing(run: Prepare, folders: Folders) -> None:
    files = folders({"ants": 9, "bees": 11, "wasps": 7})
    names = list(files)
    random.Random(3).shuffle(names)
    first = run(files)
    for name, prefix in itertools.product(["a.zip", "a.tar", "a.tgz"], ["", "my photos/"]):
        again = run({prefix + key: files[key] for key in names}, name)
        assert again.content_hash == first.content_hash
        assert [(i.id, i.label, i.split, i.fold) for i in again.items] == [
            (i.id, i.label, i.split, i.fold) for i in first.items
        ]


def test_hash_tells_labels_splits_and_class_names_apart(run: Prepare, folders: Folders) -> None:
    files = folders({"ants": 9, "bees": 11})
    moved = files | {"bees/0.png": files["ants/0.png"], "ants/0.png": files["bees/0.png"]}
    renamed = {name.replace("ants", "anty"): data for name, data in files.items()}
    variants = [run(files), run(files, seed=1), run(moved), run(renamed)]
    assert len({manifest.content_hash for manifest in variants}) == 4


def test_bad_items_are_listed_and_left_out(run: Prepare, folders: Folders, encode: Callable[..., bytes]) -> None:
    files = folders({"ants": 6, "bees": 6})
    bad = {
        "ants/virus.jpg": (b"MZ\x90\0" + bytes(100), "image_unsupported_type"),
        "ants/cut.jpg": (encode(Image.effect_noise((99, 99), 50), "JPEG")[:1500], "image_corrupt"),
        "bees/cut again.jpg": (encode(Image.effect_noise((99, 99), 50), "JPEG")[:1400], "image_corrupt"),
        "bees/empty.png": (b"", "image_corrupt"),
        "bees/also empty.png": (b"", "image_corrupt"),
        "bees/dot.png": (encode(Image.new("RGB", (1, 1))), "image_too_small"),
        "bees/\u202egnp.png": (encode(Image.new("RGB", (500, 5))), "image_aspect"),
        "bees/large.bmp": (encode(Image.effect_noise((200, 200), 50), "BMP"), "item_too_large"),
    }
    manifest = run(files | {name: data for name, (data, _) in bad.items()}, limits=Limits(max_item_bytes=30_000))
    assert codes(manifest) == sorted((code, name.replace("\u202e", "\\u202e")) for name, (_, code) in bad.items())
    assert {f.severity for f in manifest.findings if f.path} == {"error"}
    assert {item.path for item in manifest.items} == set(files)


def test_findings_are_capped_and_counted_gravest_first(run: Prepare, folders: Folders) -> None:
    files = folders({"ants": 6, "bees": 6}) | {f"ants/{i}.txt": b"" for i in range(20)} | {"ants/x.jpg": b"x"}
    manifest = run(files, limits=Limits(max_findings=5))
    assert (len(manifest.findings), manifest.n_findings) == (5, 22)  # and few_items_per_class
    assert manifest.findings[0].path == "ants/x.jpg"


def test_34_copies(run: Prepare, folders: Folders) -> None:
    files = folders({"ants": 8, "bees": 8})
    files |= {"ants/copy.png": files["ants/3.png"], "bees/stranger.png": files["ants/5.png"]}
    manifest = run(files)
    assert codes(manifest) == [("duplicate", "ants/copy.png"), ("same_image_in_two_classes", "bees/stranger.png")]
    twice = [item for item in manifest.items if item.path in ("ants/5.png", "bees/stranger.png")]
    assert [item.label for item in twice] == [0, 1]
    assert twice[0].split == twice[1].split
    assert twice[0].fold == twice[1].fold
    assert manifest.statistics.n_items == 17


def test_copies_across_given_splits_stay_in_train(run: Prepare, folders: Folders) -> None:
    files = folders({"ants": 5, "bees": 5}, "train/") | folders({"ants": 3, "bees": 3}, "val/", seed=50)
    files |= folders({"ants": 3, "bees": 3}, "test/", seed=80)
    files |= {"test/ants/leak.png": files["train/ants/1.png"], "val/bees/leak.png": files["test/bees/0.png"]}
    manifest = run(files)
    assert (
        codes(manifest)
        == [("duplicate_across_splits", "test/bees/0.png"), ("duplicate_across_splits", "test/ants/leak.png")][::-1]
    )
    assert manifest.statistics.per_split == {"train": 10, "val": 7, "test": 5}
    assert manifest.statistics.split_source == "given"


def test_near_duplicates_stay_on_one_side(
    run: Prepare, folders: Folders, picture: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    files = folders({"ants": 30, "bees": 30})
    for i in range(10):  # the same pictures, larger and compressed
        files[f"ants/again {i}.jpg"] = encode(picture(i, (96, 80)), "JPEG", quality=80)
    for seed in range(5):
        manifest = run(files, seed=seed)
        assert manifest.statistics.n_near_duplicates == 10
        where = {item.path: (item.split, item.fold) for item in manifest.items}
        assert all(where[f"ants/{i}.png"] == where[f"ants/again {i}.jpg"] for i in range(10))
        assert sum(code == "near_duplicate" for code, _ in codes(manifest)) == 10


def test_near_duplicates_across_given_splits_are_questioned_and_stay(
    run: Prepare, folders: Folders, picture: Callable[..., Image.Image], encode: Callable[..., bytes]
) -> None:
    files = folders({"ants": 5, "bees": 5}, "train/") | folders({"ants": 5, "bees": 5}, "test/", seed=50)
    files["test/ants/leak.jpg"] = encode(picture(1, (96, 80)), "JPEG", quality=80)
    manifest = run(files)
    assert [code for code, _ in codes(manifest)] == ["near_duplicate_across_splits"]
    assert next(item.split for item in manifest.items if item.path.endswith("leak.jpg")) == Split.TEST


def test_few_labels_mode(run: Prepare, folders: Folders) -> None:
    manifest = run(folders({"ants": 30, "bees": 40}), n_labelled_per_class=10)
    assert manifest.statistics.per_class == {
        "ants": {"train": 7, "val": 3, "test": 20}, "bees": {"train": 7, "val": 3, "test": 30},
    }  # fmt: skip


def test_csv_upload(run: Prepare, folders: Folders) -> None:
    pictures = list(folders({"x": 12}).values())
    files = {f"images/{i}.png": data for i, data in enumerate(pictures)}
    files["labels.csv"] = "\n".join(f"{i}.png,{'ant' if i % 2 else 'bee'}" for i in range(12)).encode()
    manifest = run(files, "upload.tgz")
    assert (manifest.layout, manifest.classes, manifest.statistics.n_items) == ("csv", ("ant", "bee"), 12)


@pytest.mark.parametrize(
    ("counts", "code"),
    [
        ({}, "dataset_empty"), ({"ants": 10}, "dataset_too_few_classes"),
        ({"ants": 10, "bees": 1}, "dataset_class_too_small"),
        ({"train/ants": 10, "test/bees": 10}, "dataset_class_too_small"),
    ],
)  # fmt: skip
def test_32_33_too_little(counts: dict[str, int], code: str, run: Prepare, folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        run(folders(counts) | {"README.md": b"hello"})
    assert caught.value.code == code
    assert not (tmp_path / "items.zip").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_33_names_the_counts(run: Prepare, folders: Folders) -> None:
    files = folders({"ants": 3, "bees": 1}) | {
        "bees/broken.jpg": b"",
        "bees/copy.png": folders({"ants": 3, "bees": 1})["bees/0.png"],
    }
    with pytest.raises(Invalid, match="bees: 1") as caught:
        run(files)
    assert caught.value.facts == {"counts": {"ants": 3, "bees": 1}}


def test_images_without_folders_are_told_what_is_read(run: Prepare, folders: Folders) -> None:
    with pytest.raises(Invalid, match="one folder per class") as caught:
        run({f"{i}.png": data for i, data in enumerate(folders({"x": 4}).values())})
    assert caught.value.code == "dataset_too_few_classes"


def test_imbalance_is_said(run: Prepare, folders: Folders) -> None:
    manifest = run(folders({"ants": 90, "bees": 6}))
    assert ("class_imbalance", None) in codes(manifest)


def test_smallest_dataset_that_can_be_divided(run: Prepare, folders: Folders) -> None:
    statistics = run(folders({"ants": 2, "bees": 2})).statistics
    assert sorted(statistics.per_split.values()) == [1, 1, 2]


def test_real_photos(real_zips: Path, tmp_path: Path) -> None:
    manifest = prepare(real_zips / "hymenoptera.zip", tmp_path / "items.zip", task="classification", options={})
    assert manifest.classes == ("ants", "bees")
    assert manifest.statistics.n_items == 397
    assert manifest.statistics.per_split == {"train": 278, "val": 59, "test": 60}
    assert manifest.statistics.n_near_duplicates == 0
    assert manifest.n_findings == 0


def test_real_exact_duplicate_is_found(real_zips: Path, tmp_path: Path) -> None:
    manifest = prepare(real_zips / "neu_surface.zip", tmp_path / "items.zip", task="classification", options={})
    assert codes(manifest) == [("duplicate", "patches/patches_105.jpg")]
    assert manifest.statistics.n_items == 1799
