import hashlib
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from domain.dataset import Item, Manifest, Split, Statistics
from intake.prepared import Writer, member, open_prepared

SPLITS = list(Split)


def write(path: Path, n: int) -> Manifest:
    """Items in one order, the manifest in another; the bytes of each are its id's."""
    ids = [hashlib.sha256(str(k).encode()).hexdigest() for k in range(n)]
    with Writer(path) as writer:
        for item_id in ids:
            writer.add(item_id, item_id.encode())
        items = tuple(
            Item(
                id=item_id, path=f"ä/{k}.png", member=member(item_id), label=k % 2, split=SPLITS[k % 3],
                fold=-1 if k % 3 == 2 else k % 60, width=32, height=32,
            )
            for k, item_id in enumerate(sorted(ids))
        )  # fmt: skip
        statistics = Statistics(
            n_items=n, n_classes=2, per_split={}, per_class={}, width_quantiles=(32,) * 5, height_quantiles=(32,) * 5
        )
        manifest = Manifest(
            task="classification", layout="folders", classes=("a", "b"), items=items, statistics=statistics,
            content_hash="0" * 64,
        )  # fmt: skip
        writer.finish(manifest)
    return manifest


@pytest.mark.parametrize("n", [0, 1, 700])
def test_rows_are_the_items_of_the_manifest(n: int, tmp_path: Path) -> None:
    manifest = write(tmp_path / "items.zip", n)
    with open_prepared(tmp_path / "items.zip") as opened:
        assert opened.manifest == manifest.model_copy(update={"items": ()})
        assert opened.ids.astype(str).tolist() == [item.id for item in manifest.items]
        assert opened.labels.tolist() == [item.label for item in manifest.items]
        assert [SPLITS[code] for code in opened.split] == [item.split for item in manifest.items]
        assert opened.fold.tolist() == [item.fold for item in manifest.items]
        assert [opened.read(row).decode() for row in range(n)] == [item.id for item in manifest.items]


def test_items_beyond_four_gigabytes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 2000)  # from there on the zip is written in another form
    write(tmp_path / "items.zip", 70)
    with open_prepared(tmp_path / "items.zip") as opened:
        assert [opened.read(row) for row in range(70)] == opened.ids.tolist()


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "items.zip", 9)
    with open_prepared(tmp_path / "items.zip") as opened:
        data = (tmp_path / "items.zip").read_bytes()
        at = data.index(opened.ids[4], data.index(opened.ids[4]) + 1)  # its name comes first
        (tmp_path / "items.zip").write_bytes(data[:at] + b"?" + data[at + 1 :])
        assert opened.read(3) == opened.ids[3]
        with pytest.raises(zipfile.BadZipFile, match="have changed"):
            opened.read(4)


def test_a_manifest_names_what_was_added(tmp_path: Path) -> None:
    manifest = write(tmp_path / "items.zip", 9)
    with pytest.raises(KeyError), Writer(tmp_path / "less.zip") as writer:
        writer.finish(manifest)
    assert not (tmp_path / "less.zip").exists()


def test_a_zip_without_rows_opens_too(tmp_path: Path) -> None:
    """As datasets were prepared earlier."""
    manifest = write(tmp_path / "items.zip", 9)
    with zipfile.ZipFile(tmp_path / "items.zip") as new, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        for name in ("manifest.json", *(item.member for item in manifest.items)):
            old.writestr(name, new.read(name))
    with open_prepared(tmp_path / "items.zip") as new_form, open_prepared(tmp_path / "old.zip") as old_form:
        assert old_form.manifest == new_form.manifest
        for column in ("ids", "labels", "split", "fold"):
            assert getattr(old_form, column).tolist() == getattr(new_form, column).tolist()
        assert [old_form.read(row) for row in range(9)] == old_form.ids.tolist()


def test_an_open_item_takes_a_few_hundred_bytes(tmp_path: Path) -> None:
    """A zip's directory and a manifest as objects take ten times as much."""
    n = 20_000
    write(tmp_path / "items.zip", n)
    tracemalloc.start()
    try:
        with open_prepared(tmp_path / "items.zip"):
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500 * n
