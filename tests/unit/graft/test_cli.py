import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer import BadParameter
from typer.testing import CliRunner

from graft.cli.app import app
from graft.cli.given import parse_fixes, parse_limits, parse_options
from graft.cli.memory import Remembered, recall, remember

JOB = {
    "id": "job_1", "name": "photos", "dataset_id": "ds_1", "state": "RUNNING", "spec": {"objective": "log_loss"},
    "progress": {"trials_done": 3, "trials_total": 8, "by_state": {"COMPLETE": 2, "PRUNED": 1, "RUNNING": 1},
                 "share": 0.375},
    "best": {"trial_id": "tr_2", "number": 2, "value": 0.3125, "anchor": None,
             "recipe": {"backbone": "resnet18", "optimizer": {"lr_head": 0.0123}, "steps": 400}},
    "cost_s": 61.0, "elapsed_s": 75.0, "left_s": 125.0, "created_at": "2026-11-21T08:00:00Z",
}  # fmt: skip


def graft(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graft", *arguments],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["serve", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from graft.cli import main
sys.argv = ["graft", *{arguments!r}]
try:
    main()
finally:
    heavy = {{"torch", "numpy", "httpx", "rich", "asyncio", "ssl", "store", "domain"}} & set(sys.modules)
    sys.stderr.write(repr(sorted(heavy)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]")
    assert "Usage: graft" in done.stdout


def test_help_answers_within_its_time() -> None:
    """Processor time, the best of five: what a busy machine cannot spoil."""

    def spent_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert graft("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(spent_s() for _ in range(5)) < 0.3


def test_every_command_has_help() -> None:
    runner = CliRunner()
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        result = runner.invoke(app, [name, "--help"])
        assert result.exit_code == 0, name
        assert (command.callback.__doc__ or "").strip().split("\n")[0] in result.output


def test_exit_codes(tmp_path: Path) -> None:
    nobody = graft("jobs")
    assert (nobody.returncode, nobody.stdout) == (3, "")
    assert nobody.stderr.startswith("graft: no service: set GRAFT_URL")
    refused = graft("jobs", GRAFT_URL="http://127.0.0.1:9", GRAFT_API_KEY="k")  # discard: nobody listens there
    assert refused.returncode == 3
    assert graft("train", str(tmp_path / "none")).returncode == 2
    assert graft("nonsense").returncode == 2
    assert graft("worker", "--queue", "gpu").returncode == 2
    failed = graft("convert", str(tmp_path / "no.pth"), str(tmp_path / "x"))
    assert failed.returncode == 1
    unusable = graft("migrate", "--home", "/proc/none")
    assert unusable.returncode == 1
    for done in (nobody, refused, failed, unusable):
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr


def test_fixes_are_values_ranges_choices_or_json() -> None:
    fixes = [
        "data.flip=false", "data.resolution=32", "optimizer.lr_head=0.001..1e-1", "head.kind=linear,mlp",
        "regularizer=l2_sp", "data.batch_size=[16, 32]", 'steps={"low": 100, "high": 200}', "data.batch_size2=16,32",
        "batch_norm=Eval", "data.flip2=True",
    ]  # fmt: skip
    assert parse_fixes(fixes) == {
        "data.flip": False, "data.resolution": 32, "optimizer.lr_head": {"low": 0.001, "high": 0.1},
        "head.kind": ["linear", "mlp"], "regularizer": "l2_sp", "data.batch_size": [16, 32],
        "steps": {"low": 100, "high": 200}, "data.batch_size2": [16, 32], "batch_norm": "Eval", "data.flip2": True,
    }  # fmt: skip
    for wrong in ("data.flip", "=1", "a=", "lr=a..b"):
        with pytest.raises(BadParameter):
            parse_fixes([wrong])


def test_options_are_numbers_words_or_json() -> None:
    given = ["n_labelled_per_class=10", "seed = 3", 'split={"train": 0.5, "val": 0.25, "test": 0.25}']
    assert parse_options(given) == {
        "n_labelled_per_class": 10, "seed": 3, "split": {"train": 0.5, "val": 0.25, "test": 0.25},
    }  # fmt: skip
    for wrong in ("seed", "=1", "seed="):
        with pytest.raises(BadParameter):
            parse_options([wrong])


def test_limits_are_a_name_a_sign_and_a_number() -> None:
    assert parse_limits(["latency_ms<=20", "macro_f1 >= 0.8", "size_bytes<=5e6"]) == {
        "latency_ms": {"at_most": 20}, "macro_f1": {"at_least": 0.8}, "size_bytes": {"at_most": 5e6},
    }  # fmt: skip
    for wrong in ("latency_ms", "latency_ms<20", "latency_ms<=fast", "<=20", "flip<=true"):
        with pytest.raises(BadParameter):
            parse_limits([wrong])


def test_other_options_are_another_dataset(tmp_path: Path) -> None:
    few = Remembered("/p", "abc", "http://x", "ds_1", "job_1", {"seed": 3, "n_labelled_per_class": 10})
    remember(tmp_path, few)
    assert recall(tmp_path, Path("/p"), "abc", "http://x") is None
    assert recall(tmp_path, Path("/p"), "abc", "http://x", {"seed": 4, "n_labelled_per_class": 10}) is None
    assert recall(tmp_path, Path("/p"), "abc", "http://x", {"n_labelled_per_class": 10, "seed": 3}) == few


def test_methods_show_the_paths_that_fix_takes(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = {"kind": "int", "low": 0, "high": 4, "log": False, "default": 1}
    catalogue = {
        "backbones": [{"name": "net", "summary": "a net", "resolutions": [96, 128]}],
        "parts": [
            {"slot": "schedule", "name": "freeze", "summary": "s", "needs": ["start"], "space": {"depth": depth}}
        ],
        "tasks": [{"name": "t", "summary": "s", "space": {"steps": {**depth, "log": True}}}],
    }

    def answer(handler: Any, _: Any) -> None:
        handler.reply(200, json.dumps(catalogue).encode())

    peer.answer = answer
    monkeypatch.setenv("GRAFT_URL", peer.url)
    monkeypatch.setenv("GRAFT_API_KEY", "k")
    lines = CliRunner().invoke(app, ["methods"]).output.splitlines()
    for line in (
        "    data.resolution one of 96, 128", "    needs start", "    schedule.freeze.depth 0 to 4 (default 1)",
        "    steps 0 to 4, log (default 1)",
    ):  # fmt: skip
        assert line in lines


def test_remembered_jobs_belong_to_a_path_a_content_and_a_service(tmp_path: Path) -> None:
    entry = Remembered("/p", "abc", "http://x", "ds_1", "job_1")
    remember(tmp_path, entry)
    remember(tmp_path, Remembered("/p", "abd", "http://x", "ds_2"))
    assert recall(tmp_path, Path("/p"), "abc", "http://x") == entry
    assert recall(tmp_path, Path("/p"), "abd", "http://x") == Remembered("/p", "abd", "http://x", "ds_2")
    assert recall(tmp_path, Path("/q"), "abc", "http://x") is None
    assert recall(tmp_path, Path("/p"), "abc", "http://y") is None
    (tmp_path / "jobs.json").write_text("{damaged")
    assert recall(tmp_path, Path("/p"), "abc", "http://x") is None


@pytest.fixture
def job_peer(peer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def answer(handler: Any, seen: Any) -> None:
        handler.read_body(seen)
        if "?" in seen.path or seen.path.endswith("/jobs"):
            handler.reply(200, json.dumps({"items": [JOB], "next_cursor": None}).encode())
        else:
            handler.reply(200, json.dumps(JOB).encode())

    peer.answer = answer
    monkeypatch.setenv("GRAFT_URL", peer.url)
    monkeypatch.setenv("GRAFT_API_KEY", "k")
    return peer


def test_jobs_are_listed_for_people_and_for_programs(job_peer: Any) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["jobs"])
    assert shown.output.splitlines()[1].split()[:5] == ["job_1", "photos", "RUNNING", "3/8", "0.3125"]
    (read,) = json.loads(runner.invoke(app, ["jobs", "--json", "--state", "running"]).output)
    assert (read["id"], read["progress"]["trials_done"]) == ("job_1", 3)
    assert "state=RUNNING" in job_peer.seen[-1].path


def test_status_says_what_matters(job_peer: Any) -> None:
    output = CliRunner().invoke(app, ["status", "job_1"]).output
    assert "3 of 8 (2 COMPLETE, 1 PRUNED, 1 RUNNING)" in output
    assert "1 min 15 s, 1 min 01 s of training, about 2 min 05 s left" in output
    assert "trial 2: log_loss 0.3125  resnet18 lr 0.012 400 steps" in output


def test_cancel_and_extend_say_what_they_mean(job_peer: Any) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["cancel", "job_1"]).output == "job_1 is RUNNING\n"
    assert json.loads(job_peer.seen[-1].body) == {"keep": "best"}
    runner.invoke(app, ["cancel", "job_1", "--keep", "nothing"])
    assert json.loads(job_peer.seen[-1].body) == {"keep": "nothing"}
    runner.invoke(app, ["extend", "job_1", "--minutes", "2.5"])
    assert (job_peer.seen[-1].method, json.loads(job_peer.seen[-1].body)) == ("PATCH", {"wall_s": 150.0})
    assert runner.invoke(app, ["extend", "job_1"]).exit_code == 2
