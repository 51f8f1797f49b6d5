"""Hostile and damaged archives: each is refused with its code, before anything of it is used."""

import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from domain.errors import Invalid
from intake.archives import members
from intake.limits import Limits

Files = Iterable[tuple[str, bytes]]
PLAIN = [("ants/1.jpg", b"one"), ("bees/2.jpg", b"two" * 1000)]


def zip_of(files: Files, **changes: object) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            info = zipfile.ZipInfo(name)
            info.filename = name  # ZipInfo cuts at a NUL
            info.compress_type = zipfile.ZIP_DEFLATED
            for field, value in changes.items():
                setattr(info, field, value)
            archive.writestr(info, data)
    return buffer.getvalue()


def tar_of(entries: Iterable[tuple[str, bytes] | tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
                continue
            info = tarfile.TarInfo(entry[0])
            info.size = len(entry[1])
            archive.addfile(info, io.BytesIO(entry[1]))
    return buffer.getvalue()


def tgz_of(entries: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> bytes:
    return gzip.compress(tar_of(entries))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    def read_all(data: bytes, **limits: float) -> dict[str, bytes]:
        path = tmp_path / "upload"
        path.write_bytes(data)
        return {member.name: member.read() for member in members(path, Limits(**limits))}

    return read_all


@pytest.fixture
def refuse(read: Callable[..., dict[str, bytes]]) -> Callable[..., None]:
    def check(data: bytes, code: str, **limits: float) -> None:
        with pytest.raises(Invalid) as caught:
            read(data, **limits)
        assert caught.value.code == code
        assert caught.value.detail.isprintable()

    return check


@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_ordinary_archive_gives_its_files(pack: Callable[[Files], bytes], read: Callable[..., object]) -> None:
    assert read(pack(PLAIN)) == dict(PLAIN)


def test_folders_and_dots_and_backslashes_are_understood(read: Callable[..., dict[str, bytes]]) -> None:
    assert set(read(zip_of([("ants/", b""), ("./ants//1.jpg", b"1"), ("bees\\2.jpg", b"2")]))) == {
        "ants/1.jpg", "bees/2.jpg",
    }  # fmt: skip


def test_empty_archives_hold_nothing(read: Callable[..., object]) -> None:
    assert read(zip_of([])) == read(tar_of([])) == read(tgz_of([])) == {}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_of_tars(format: int, read: Callable[..., object]) -> None:
    files = [("class/" + "n" * 200 + ".jpg", b"1"), ("größe/ü.jpg", b"2")]
    assert read(tar_of(files, format)) == dict(files)


def test_old_tar_with_names_that_are_not_utf8(read: Callable[..., object]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(tarfile.TarInfo("größe.jpg"))
    assert read(buffer.getvalue()) == {"größe.jpg": b""}


def test_utf8_name_without_the_flag_is_read_as_utf8(read: Callable[..., object]) -> None:
    data = zip_of([("xx.jpg", b"1")]).replace(b"xx.jpg", "é.jpg".encode())
    assert read(data) == {"é.jpg": b"1"}


@pytest.mark.parametrize("name", ["a/inner.zip", "inner.tar.gz", "x.7z", "X.ZIP"])
@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_01_nested(pack: Callable[[Files], bytes], name: str, refuse: Callable[..., None]) -> None:
    refuse(pack([(name, b"x")]), "archive_nested")


@pytest.mark.parametrize("pack", [zip_of, tgz_of])
def test_02_ratio(pack: Callable[[Files], bytes], refuse: Callable[..., None]) -> None:
    refuse(pack([("a/zeros.bmp", bytes(10_000_000))]), "archive_ratio_exceeded")


@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_03_total(pack: Callable[[Files], bytes], refuse: Callable[..., None]) -> None:
    files = [(f"a/{i}.jpg", bytes(range(256)) * 4) for i in range(100)]
    refuse(pack(files), "archive_too_large", max_unpacked_bytes=50_000)


def test_03_archive_itself_too_large(refuse: Callable[..., None]) -> None:
    refuse(zip_of(PLAIN), "archive_too_large", max_archive_bytes=100)


def test_04_two_entries_of_the_same_bytes(refuse: Callable[..., None]) -> None:
    data = bytearray(zip_of([("a/1.jpg", b"x" * 50), ("a/2.jpg", b"x" * 50)]))
    second = data.rindex(b"PK\1\2")
    struct.pack_into("<L", data, second + 42, 0)  # both start at the first local header
    refuse(bytes(data), "archive_overlap")


def test_04_entry_reaches_into_the_next(refuse: Callable[..., None]) -> None:
    data = bytearray(zip_of([("a/1.jpg", b"x" * 50), ("a/2.jpg", b"y" * 50)]))
    first = data.index(b"PK\1\2")
    (size,) = struct.unpack_from("<L", data, first + 20)
    struct.pack_into("<L", data, first + 20, size + 1)
    refuse(bytes(data), "archive_overlap")


@pytest.mark.parametrize("declared", [10, 20_000_000])
def test_05_size_that_lies(declared: int, refuse: Callable[..., None]) -> None:
    body = bytes(range(256)) * 40_000
    data = bytearray(zip_of([("a/1.jpg", body)]))
    entry = data.index(b"PK\1\2")
    struct.pack_into("<L", data, entry + 24, declared)
    struct.pack_into("<L", data, entry + 16, zlib.crc32(body[:declared]))  # even with a checksum to match
    refuse(bytes(data), "archive_corrupt", max_ratio=10_000)


def test_05_wrong_checksum(refuse: Callable[..., None]) -> None:
    data = bytearray(zip_of(PLAIN))
    data[data.index(b"PK\1\2") + 16] ^= 1
    refuse(bytes(data), "archive_corrupt")


@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_06_many_entries(pack: Callable[[Files], bytes], refuse: Callable[..., None]) -> None:
    refuse(pack([(f"{i}.jpg", b"") for i in range(101)]), "archive_too_many_files", max_files=100)


def test_06_directory_that_hides_its_count(refuse: Callable[..., None]) -> None:
    data = bytearray(zip_of([(f"{i}.jpg", b"") for i in range(101)]))
    struct.pack_into("<2H", data, data.rindex(b"PK\5\6") + 8, 1, 1)
    refuse(bytes(data), "archive_too_many_files", max_files=100)
    refuse(bytes(data), "archive_corrupt")


@pytest.mark.parametrize("name", ["../../etc/x", "a/../../x", "a\\..\\..\\x", "/etc/x", "C:\\x", "c:/x", "\\\\host\\x"])
@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_07_08_traversal(pack: Callable[[Files], bytes], name: str, refuse: Callable[..., None]) -> None:
    refuse(pack([*PLAIN, (name, b"x")]), "archive_path_traversal")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_09_special_zip_entry(kind: int, refuse: Callable[..., None]) -> None:
    refuse(zip_of([("a/link.jpg", b"/etc/passwd")], external_attr=(kind | 0o777) << 16), "archive_forbidden_entry")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
@pytest.mark.parametrize("pack", [tar_of, tgz_of])
def test_09_10_11_special_tar_entry(pack: Callable[..., bytes], kind: bytes, refuse: Callable[..., None]) -> None:
    refuse(pack([*PLAIN, special("a/x.jpg", kind, "../../etc/passwd")]), "archive_forbidden_entry")


def test_12_link_then_file_through_it(refuse: Callable[..., None]) -> None:
    refuse(tar_of([special("a", tarfile.SYMTYPE, "/tmp"), ("a/1.jpg", b"x")]), "archive_forbidden_entry")


@pytest.mark.parametrize("name", ["a/" + "n" * 300 + ".jpg", "d/" * 500 + "1.jpg"])
@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_14_15_long_and_deep_names(pack: Callable[[Files], bytes], name: str, refuse: Callable[..., None]) -> None:
    refuse(pack([(name, b"x")]), "archive_bad_name")


def test_13_nul_in_name(refuse: Callable[..., None]) -> None:
    refuse(zip_of([("a/1.jpg", b"x")]).replace(b"a/1.jpg", b"a/\0.jpg"), "archive_bad_name")


def test_13_huge_extended_header_is_not_read(refuse: Callable[..., None]) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    refuse(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "archive_bad_name")


@pytest.mark.parametrize(
    "names",
    [("a/x.jpg", "a/x.jpg"), ("a/X.jpg", "A/x.jpg"), ("é.jpg", unicodedata.normalize("NFD", "é.jpg")), ("ß", "SS")],
)
@pytest.mark.parametrize("pack", [tar_of, tgz_of, zip_of])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_16_same_name_twice(pack: Callable[[Files], bytes], names: list[str], refuse: Callable[..., None]) -> None:
    refuse(pack([(name, b"x") for name in names]), "archive_duplicate_name")


@pytest.mark.parametrize("name", ["a/\u202egnp.jpg", "a/😀.jpg", "a/ﬁ.jpg", "a/new\nline.jpg"])
@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_17_odd_names_are_only_names(pack: Callable[[Files], bytes], name: str, read: Callable[..., object]) -> None:
    assert read(pack([(name, b"x")])) == {name: b"x"}


@pytest.mark.parametrize("bit", [0, 6])
def test_18_encrypted(bit: int, refuse: Callable[..., None]) -> None:
    data = bytearray(zip_of(PLAIN))
    data[data.index(b"PK\1\2") + 8] |= 1 << bit
    refuse(bytes(data), "archive_encrypted")


@pytest.mark.parametrize("cut", [1, 30, 150])
@pytest.mark.parametrize("pack", [zip_of, tgz_of])
def test_19_truncated(pack: Callable[[Files], bytes], cut: int, refuse: Callable[..., None]) -> None:
    refuse(pack(PLAIN)[:-cut], "archive_corrupt")


@pytest.mark.parametrize("size", [1024, 1536, 2048, 3000])
def test_19_truncated_tar(size: int, refuse: Callable[..., None]) -> None:
    refuse(tar_of(PLAIN)[:size], "archive_corrupt")


def test_19_damaged_tar_header_is_not_taken_for_the_end(refuse: Callable[..., None]) -> None:
    data = bytearray(tar_of(PLAIN))
    data[1024 + 5] ^= 1
    refuse(bytes(data), "archive_corrupt")


@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_19_trailing_garbage(pack: Callable[[Files], bytes], refuse: Callable[..., None]) -> None:
    refuse(pack(PLAIN) + b"garbage", "archive_corrupt")


@pytest.mark.parametrize("prefix", [b"#!/bin/sh\n", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\3\4" + bytes(40)])
def test_20_prefix_and_polyglot(prefix: bytes, refuse: Callable[..., None]) -> None:
    refuse(prefix + zip_of(PLAIN), "archive_corrupt")


def test_20_prefix_with_offsets_made_to_fit(refuse: Callable[..., None]) -> None:
    buffer = io.BytesIO(b"PK\3\4" + bytes(60))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("a/1.jpg", b"x")
    refuse(buffer.getvalue(), "archive_corrupt")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff\xe0 a photo", b"PK", gzip.compress(b"no tar", mtime=0), bytes(511) + b"x"]
)
def test_no_archive_at_all(data: bytes, refuse: Callable[..., None]) -> None:
    refuse(data, "archive_corrupt")


@pytest.mark.parametrize("magic", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a", b"BZh9", b"\xfd7zXZ"])
def test_formats_that_are_not_read_are_named(magic: bytes, refuse: Callable[..., None]) -> None:
    refuse(magic + bytes(600), "archive_unsupported")


def test_unread_compression_is_named(refuse: Callable[..., None]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/1.jpg", b"x" * 100)
    refuse(buffer.getvalue(), "archive_unsupported")


def test_zip64_is_read(read: Callable[..., object]) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, archive.open("a/1.jpg", "w", force_zip64=True) as file:
        file.write(b"x" * 100)
    assert read(buffer.getvalue()) == {"a/1.jpg": b"x" * 100}
    many = zip_of([(f"{i}", b"") for i in range(66_000)])  # more entries than the plain end record can count
    assert len(read(many)) == 66_000  # type: ignore[arg-type]


def test_every_single_damaged_byte_is_refused_or_harmless(read: Callable[..., dict[str, bytes]]) -> None:
    for pack in (zip_of, tar_of, tgz_of):
        data = pack([("a/1.jpg", b"abc" * 20)])
        for at in range(0, len(data), 7 if pack is tar_of else 1):
            damaged = bytearray(data)
            damaged[at] ^= 0x41
            with suppress(Invalid):
                read(bytes(damaged))


@pytest.mark.parametrize("pack", [zip_of, tar_of, tgz_of])
def test_memory_is_that_of_one_file(pack: Callable[[Files], bytes], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "upload").write_bytes(pack([(f"a/{i}.bmp", rng.bytes(1_000_000)) for i in range(30)]))
    tracemalloc.start()
    try:
        assert sum(len(member.read()) for member in members(tmp_path / "upload", Limits())) == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


def test_zip_written_to_a_pipe_is_read(read: Callable[..., object]) -> None:
    class Pipe(io.RawIOBase):
        """Not seekable: sizes and checksums then follow the bytes of each entry."""

        written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            self.written += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        for name, data in PLAIN:
            archive.writestr(name, data)
    assert read(pipe.written) == dict(PLAIN)
