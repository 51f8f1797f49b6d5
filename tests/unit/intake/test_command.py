"""`python -m intake` in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intake.packs import open_pack

ROOT = Path(__file__).parents[3]


def run(*args: object) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "intake", *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line)


def test_prepare_then_pack(archive: Callable[..., Path], folders: Callable[..., Any], tmp_path: Path) -> None:
    upload, items, folder = (
        archive(folders({"ants": 10, "bees": 10}), "x.tgz"),
        tmp_path / "items.zip",
        tmp_path / "pack",
    )
    limits = ("--max-memory-bytes", 2 * 10**9, "--max-cpu-s", 60, "--max-file-bytes", 10**8)
    code, answer = run(*limits, "prepare", upload, items, "--options", '{"seed": 3}')
    assert code == 0
    assert answer["ok"]["statistics"]["n_items"] == 20
    assert answer["ok"]["facts"]["options"]["seed"] == 3
    assert "items" not in answer["ok"]
    code, answer = run(*limits, "pack", items, folder, "--resize", 36, "--crop", 32, "--interpolation", "bilinear")
    assert (code, answer["ok"]["n"], answer["ok"]["canvas"]) == (0, 20, 36)
    assert open_pack(folder).content_hash == answer["ok"]["content_hash"]


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ([], "dataset_too_few_classes"), (["--options", "{"], "bad_options"), (["--options", "[]"], "bad_options"),
        (["--task", "poetry"], "unknown_task"), (["--limits", '{"max_files": 1}'], "archive_too_many_files"),
    ],
)  # fmt: skip
def test_refusal_is_one_line(
    extra: list[str], code: str, archive: Callable[..., Path], folders: Callable[..., Any], tmp_path: Path
) -> None:
    upload = archive(folders({"ants": 3}))
    status, answer = run("prepare", upload, tmp_path / "items.zip", *extra)
    assert status == 1
    assert answer["error"]["code"] == code
    assert set(answer["error"]) == {"code", "detail", "facts"}


def test_limits_hold(archive: Callable[..., Path], folders: Callable[..., Any], tmp_path: Path) -> None:
    upload = archive(folders({"ants": 10, "bees": 10}))
    status, answer = run("--max-file-bytes", 2000, "prepare", upload, tmp_path / "items.zip")
    assert (status, answer["error"]["code"]) == (1, "insufficient_storage")
    assert [path.name for path in tmp_path.iterdir()] == ["upload.zip"]


def test_no_torch_is_loaded() -> None:
    program = "import intake.__main__, intake.model_file, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
