"""How fast does an upload stream through the API, and does its memory grow with the file?"""

import hashlib
import os
import random
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import Service, api
from benchmarks.table import Figure, quantile

MB = 10**6
MIB = 2**20
SMALL, LARGE = 64 * MB, 1000 * MB
CHUNK = 256 * 1024
MAX_GROWTH = 16.0  # MiB that the peak may differ by between the two files: noise, not the file


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name, api(Path(name) / "home") as service:
        folder = Path(name)
        small, large = (_archive(folder / f"{size}.zip", size) for size in (SMALL, LARGE))
        _send(service, small, "warm")
        service.process.forget_peak()
        small_s = [_send(service, small, f"small{number}") for number in range(3)]
        small_peak = service.process.peak_bytes()
        service.process.forget_peak()
        cpu = service.process.cpu_s()
        large_s = _send(service, large, "large")
        cpu = service.process.cpu_s() - cpu
        large_peak = service.process.peak_bytes()
        floor_s = _copy_and_hash(large, folder / "copy")
    return [
        Figure("64 MB, median of 3", SMALL / MB / quantile(small_s, 0.5), "MB/s"),
        Figure("1 GB", LARGE / MB / large_s, "MB/s"),
        Figure("1 GB, share of a local copy with sha256", floor_s / large_s, "ratio"),
        Figure("1 GB, CPU of the API", cpu, "s"),
        Figure("API peak memory, 64 MB", small_peak / MIB, "MiB"),
        Figure("API peak memory, 1 GB", large_peak / MIB, "MiB"),
        Figure("API peak memory, growth", (large_peak - small_peak) / MIB, "MiB", ("<=", MAX_GROWTH)),
    ]


def _archive(path: Path, size_bytes: int) -> Path:
    """A zip of stored entries in two class folders; noise, since the API reads no further than the first bytes."""
    noise = random.Random(0).randbytes(MIB)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(size_bytes // MIB):
            archive.writestr(f"{'ab'[number % 2]}/{number}.jpg", number.to_bytes(8, "big") + noise[8:])
    return path


def _send(service: Service, path: Path, name: str) -> float:
    digest = _sha256(path)
    headers = {
        "content-type": "application/zip",
        "x-checksum-sha256": digest,
        "content-length": str(path.stat().st_size),
    }
    params = {"name": name, "task": "classification"}
    with service.client(timeout_s=600.0) as client:
        began = time.perf_counter()
        answer = client.post("/v1/datasets", params=params, headers=headers, content=_chunks(path))
        elapsed = time.perf_counter() - began
    answer.raise_for_status()
    if answer.json()["sha256"] not in (None, digest):
        raise RuntimeError("the API counts other bytes than were sent")
    return elapsed


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy_and_hash(source: Path, target: Path) -> float:
    """The least that must happen: the bytes reach another file, synced, and their checksum is known."""
    began = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())
    return time.perf_counter() - began
