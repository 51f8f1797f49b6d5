import io
import os
import threading
import time
from pathlib import Path

import pytest

from store.cache import evict, fetch_blob, once
from store.local_blobs import LocalBlobs
from transfer.warm import file_key


def test_what_is_built_appears_whole_and_is_built_once(tmp_path: Path) -> None:
    built: list[Path] = []
    ready = threading.Barrier(4)

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "a").write_text("a")
        assert not (tmp_path / "pack").exists()
        (folder / "b").write_text("b")

    def want() -> None:
        ready.wait()
        assert sorted(p.name for p in once(tmp_path / "pack", build).iterdir()) == ["a", "b"]

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert not built[0].exists()


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a").write_text("a")
        raise KeyError

    with pytest.raises(KeyError):
        once(tmp_path / "packs" / "a", fail)
    assert [p.name for p in (tmp_path / "packs").iterdir()] == ["a.lock"]
    assert once(tmp_path / "packs" / "a", lambda folder: (folder / "b").touch()).is_dir()


def test_a_blob_is_fetched_once(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.put("ws/w.zip", io.BytesIO(b"abc"))
    first = fetch_blob(blobs, "ws/w.zip", tmp_path / "cache")
    inode = first.stat().st_ino
    second = fetch_blob(blobs, "ws/w.zip", tmp_path / "cache")
    assert (second, second.stat().st_ino, second.read_bytes()) == (first, inode, b"abc")


def test_a_blob_that_is_fetched_again_is_used_and_not_changed(tmp_path: Path) -> None:
    blobs, folder = LocalBlobs(tmp_path / "blobs"), tmp_path / "cache"
    for name in ("a.bin", "b.bin"):
        blobs.put(f"ws/{name}", io.BytesIO(name.encode()))
        os.utime(fetch_blob(blobs, f"ws/{name}", folder), (10**9, 10**9))
    a, b = (fetch_blob(blobs, f"ws/{name}", folder) for name in ("a.bin", "b.bin"))
    os.utime(b, (10**9 + 5, 10**9))
    assert file_key(a) == (str(a), 5, 10**18)  # what warm processes know it by
    assert evict(folder, 5, min_idle_s=0.0) == 5
    assert a.exists()
    assert not b.exists()


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    for n, name in enumerate(["c", "a", "b"]):
        folder = once(tmp_path / name, lambda folder: (folder / "x").write_bytes(b"x" * 100))
        os.utime(folder, (n, n))
    (tmp_path / "file").write_bytes(b"x" * 50)  # used just now
    once(tmp_path / "a", lambda _: None)  # and so is this
    assert evict(tmp_path, 10_000) == 0
    assert evict(tmp_path, 299) == 100
    assert not (tmp_path / "c").exists()
    assert evict(tmp_path, 0) == 100  # b; the others may be about to be opened
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["a", "file"]
    assert evict(tmp_path, 0, min_idle_s=-1 - time.time()) == 150
    assert evict(tmp_path / "none", 0) == 0
