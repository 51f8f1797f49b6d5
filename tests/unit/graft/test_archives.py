import hashlib
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from graft.archives import as_archive, chunks, folder_files, media_type_of, zip_folder
from graft.errors import GraftError


def make_folder(root: Path, names: dict[str, bytes]) -> Path:
    for name, content in names.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return root


FILES = {"cat/b.jpg": b"two", "cat/a.jpg": b"one", "dog/ä ö.jpg": b"three" * 1000}


def test_equal_content_has_equal_bytes_whenever_and_wherever_it_was_made(tmp_path: Path) -> None:
    first = make_folder(tmp_path / "first", FILES)
    second = make_folder(tmp_path / "second", dict(reversed(FILES.items())))
    os.utime(second / "cat/a.jpg", (10**9, 10**9))
    (second / "cat/b.jpg").chmod(0o600)
    one, two = zip_folder(first, tmp_path / "1.zip"), zip_folder(second, tmp_path / "2.zip")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.sha256 == two.sha256 == hashlib.sha256(one.path.read_bytes()).hexdigest()
    assert one.size_bytes == one.path.stat().st_size


def test_members_are_stored_sorted_and_whole(tmp_path: Path) -> None:
    archive = zip_folder(make_folder(tmp_path / "f", FILES), tmp_path / "f.zip")
    with zipfile.ZipFile(archive.path) as found:
        assert found.namelist() == ["cat/a.jpg", "cat/b.jpg", "dog/ä ö.jpg"]
        assert {i.compress_type for i in found.infolist()} == {zipfile.ZIP_STORED}
        assert {name: found.read(name) for name in found.namelist()} == FILES


def test_another_byte_is_another_digest(tmp_path: Path) -> None:
    one = zip_folder(make_folder(tmp_path / "1", FILES), tmp_path / "1.zip")
    two = zip_folder(make_folder(tmp_path / "2", {**FILES, "cat/a.jpg": b"onE"}), tmp_path / "2.zip")
    assert one.sha256 != two.sha256


def test_litter_of_file_managers_stays_behind(tmp_path: Path) -> None:
    litter = {
        ".DS_Store": b"x",
        "cat/Thumbs.db": b"x",
        "cat/.ipynb_checkpoints/a.jpg": b"x",
        "__MACOSX/cat/a.jpg": b"x",
    }
    folder = make_folder(tmp_path / "f", {**FILES, **litter})
    assert [name for name, _ in folder_files(folder)] == sorted(FILES)


def test_linked_folders_count_once_and_loops_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", FILES)
    (folder / "wolf").symlink_to(folder / "dog", target_is_directory=True)
    assert ("wolf/ä ö.jpg") in [name for name, _ in folder_files(folder)]
    (folder / "dog" / "up").symlink_to(folder, target_is_directory=True)
    with pytest.raises(GraftError, match="links back"):
        folder_files(folder)


def test_an_empty_folder_says_what_belongs_in_it(tmp_path: Path) -> None:
    with pytest.raises(GraftError, match="one sub-folder of images per class"):
        zip_folder(tmp_path, tmp_path / "x.zip")


def test_archives_are_known_by_their_bytes(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", FILES)
    for suffix, mode, media_type in ((".a", "w", "application/x-tar"), (".b", "w:gz", "application/gzip")):
        with tarfile.open(tmp_path / f"x{suffix}", mode) as archive:  # type: ignore[call-overload]
            archive.add(folder, "f")
        assert media_type_of(tmp_path / f"x{suffix}") == media_type
        sent = as_archive(tmp_path / f"x{suffix}", tmp_path)
        assert (sent.path, sent.media_type) == (tmp_path / f"x{suffix}", media_type)
    assert media_type_of(zip_folder(folder, tmp_path / "x.tar").path) == "application/zip"
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(GraftError, match="no zip, tar or"):
        as_archive(tmp_path / "photo.jpg", tmp_path)


def test_a_csv_brings_its_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", {"labels.csv": b"path,label\n", "x/1.jpg": b"1"})
    archive = as_archive(folder / "labels.csv", tmp_path)
    with zipfile.ZipFile(archive.path) as found:
        assert found.namelist() == ["labels.csv", "x/1.jpg"]
    (folder / "other.csv").write_text("")
    with pytest.raises(GraftError, match=r"other\.csv"):
        as_archive(folder / "labels.csv", tmp_path)


def test_chunks_are_the_bytes_of_the_range(tmp_path: Path) -> None:
    file = tmp_path / "x"
    content = os.urandom(3 * 2**20 + 17)
    file.write_bytes(content)
    told: list[tuple[int, int]] = []
    assert b"".join(chunks(file, 5, 2**20 + 9, tell=lambda *t: told.append(t))) == content[5 : 2**20 + 9]
    assert told[-1] == (2**20 + 9, len(content))
    assert b"".join(chunks(file)) == content
