"""The `graft` command on a machine where nothing runs yet: it starts the embedded service, trains, leaves a bundle."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from graft import Client
from graft.archives import Archive, sha256_of
from graft.errors import GraftApiError
from graft.home import is_held, running
from graft.serving import child_environment, command, stop
from graft.uploads import send_resumable
from tests.system.digits import write_digits

QUICK = ["--source", "scratch:smallnet", "--fix", "data.flip=false", "--fix", "steps=40..60"]
LONG = ["--source", "scratch:smallnet", "--fix", "data.flip=false", "--fix", "steps=200", "--budget-trials", "400"]


def _hear_interrupts() -> None:
    """Tests started in the background of a shell ignore Ctrl-C, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Machine:
    """A home of its own and a folder of pictures; commands run from the folder above them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GRAFT_")}
        self.environment = {**child_environment(self.home, OMP_NUM_THREADS="1"), **kept, "GRAFT_HOME": str(self.home)}
        self.environment |= {"GRAFT_WORKERS": "1", "GRAFT_N_THREADS": "1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command("graft", *arguments), cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=_hear_interrupts,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> str:
        with self.start(*arguments) as process:
            output, _ = process.communicate(timeout=180)
        assert process.returncode == code, output
        return output

    def pictures(self, name: str, digits: list[int], per_class: int = 40) -> Path:
        archive = write_digits(self.folder / f"{name}.zip", digits, per_class=per_class)
        with zipfile.ZipFile(archive) as pictures:
            pictures.extractall(self.folder / name)
        return self.folder / name


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    yield machine
    stop(machine.home)


def until(holds: Callable[[], object], for_s: float = 90.0) -> None:
    ends = time.monotonic() + for_s
    while not holds():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)


def test_a_folder_becomes_a_bundle_and_an_account(machine: Machine) -> None:
    machine.pictures("photos", [0, 1, 2])
    output = machine.run("train", "photos", *QUICK, "--budget-trials", "2")
    assert "starting a service in" in output
    assert "120 images, 3 classes (84 train, 18 val, 18 test)" in output
    assert "trial 0 (scratch) is COMPLETE" in output
    assert "images that the search never saw" in output
    bundle = machine.folder / "photos-graft"
    assert {"model.safetensors", "recipe.json", "predict.py", "model_card.md"} <= {p.name for p in bundle.iterdir()}
    picture = next((machine.folder / "photos" / "1").iterdir())
    said = subprocess.run(
        [sys.executable, "predict.py", str(picture), "--json"], cwd=bundle, capture_output=True, text=True, check=True
    )
    assert {p["label"] for p in json.loads(said.stdout)[0]["predictions"]} == {"0", "1", "2"}
    (job,) = json.loads(machine.run("jobs", "--json"))
    assert f"{job['id']} " in machine.run("status", job["id"])
    assert machine.run("logs", job["id"]).rstrip().endswith("job is COMPLETE")
    machine.run("download", job["id"], "--out", "again.zip")
    assert sha256_of(machine.folder / "again.zip")
    assert "is not empty" in machine.run("train", "photos", "--out", "photos-graft", code=1)


def test_the_same_content_is_uploaded_once(machine: Machine) -> None:
    machine.pictures("same", [3, 4])
    for trials in ("1", "1"):
        machine.run("train", "same", *QUICK, "--budget-trials", trials)
    assert (machine.folder / "same-graft-2").is_dir()
    found = [d for d in json.loads(machine.run("datasets", "--json")) if d["name"] == "same"]
    assert len(found) == 1


def test_a_detached_job_is_picked_up_and_kept_at_its_best(machine: Machine) -> None:
    machine.pictures("long", [5, 6])
    first = machine.run("train", "long", *LONG, "--detach")
    job_id = next(word for word in first.split() if word.startswith("job_"))
    following = machine.start("train", "long", *QUICK, "--on-interrupt", "keep", "--out", "kept")
    lines: list[str] = []
    seen = threading.Event()

    def listen() -> None:
        assert following.stdout is not None
        for line in following.stdout:
            lines.append(line)
            if "best so far" in line:
                seen.set()

    listener = threading.Thread(target=listen)
    listener.start()
    assert seen.wait(90), lines
    following.send_signal(signal.SIGINT)
    assert following.wait(90) == 0, lines
    listener.join()
    assert following.stdout is not None
    following.stdout.close()
    output = "".join(lines)
    assert f"following {job_id}" in output
    assert "finishes with the best trial so far" in output
    assert "The search ended because it was told to." in output
    assert (machine.folder / "kept" / "model.onnx").exists()


def test_an_interrupted_call_that_cannot_ask_detaches(machine: Machine) -> None:
    machine.pictures("left", [7, 8])
    with machine.start("train", "left", *LONG) as process:
        assert process.stdout is not None
        job_id = next(line.split()[1] for line in process.stdout if line.startswith("job job_"))
        assert any("job is WAITING" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        output = process.stdout.read()
        assert process.wait(30) == 130
    assert f"{job_id} goes on by itself" in output
    assert machine.run("cancel", job_id, "--keep", "nothing") == f"{job_id} is CANCELLED\n"
    assert "CANCELLED" in machine.run("status", job_id)


def test_a_csv_names_path_and_label(machine: Machine) -> None:
    folder = machine.pictures("listed", [1, 7], per_class=20)
    rows = [
        f"{place.relative_to(folder)},{'one' if place.parent.name == '1' else 'seven'}"
        for place in folder.rglob("*.png")
    ]
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    output = machine.run("train", "listed/labels.csv", *QUICK, "--budget-trials", "1")
    assert "40 images, 2 classes" in output
    assert set(json.loads((machine.folder / "labels-graft" / "labels.json").read_text())) == {"one", "seven"}


def test_refusals_are_one_line_without_a_traceback(machine: Machine) -> None:
    machine.pictures("one_class", [1], per_class=5)
    for arguments, needed in (
        (["train", "one_class"], "dataset_too_few_classes"),
        (["train", "photos", "--source", "torchvision:nothing"], "unknown_backbone"),
        (["train", "photos", "--fix", "nonsense=1"], "unknown_dimension"),
        (["status", "job_00"], "not_found"),
    ):
        output = machine.run(*arguments, code=1)
        assert needed in output
        assert "Traceback" not in output


def test_the_resumable_upload_arrives_whole(machine: Machine) -> None:
    file = write_digits(machine.folder / "resumed.zip", [2, 3], per_class=30)
    archive = Archive(file, file.stat().st_size, sha256_of(file), "application/zip")
    facts = {"name": "resumed", "task": "classification", "options": {"seed": 1}}
    with Client(home=machine.home) as client:
        dataset = send_resumable(client._transport, archive, facts, piece_bytes=5_000)
        assert client.datasets.wait(dataset.id, timeout_s=900).sha256 == archive.sha256
        wrong = Archive(file, file.stat().st_size, "0" * 64, "application/zip")
        with pytest.raises(GraftApiError) as refused:
            send_resumable(client._transport, wrong, facts)
        assert refused.value.code == "checksum_mismatch"


def test_a_key_is_shown_once_and_can_go(machine: Machine) -> None:
    key = machine.run("keys", "create", "laptop").strip()
    assert key.startswith("graft_")
    service = running(machine.home)
    assert service is not None
    with Client(service.url, key) as client:
        (made,) = [k for k in client.keys.list() if k.name == "laptop"]
        assert made.key is None
        assert machine.run("keys", "delete", made.id)
        with pytest.raises(GraftApiError) as refused:
            client.workspace()
    assert refused.value.status == 401


def test_nothing_outlives_a_killed_service_and_the_next_call_starts_another(machine: Machine) -> None:
    service = running(machine.home)
    assert service is not None
    below = {service.pid, *descendants(service.pid)}
    assert len(below) >= 3, "supervisor, API and worker at least"
    os.kill(service.pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in below))
    assert not is_held(machine.home)
    assert "no service" in machine.run("jobs", code=3)
    assert "goes on by itself" in machine.run("train", "photos", *QUICK, "--budget-trials", "1", "--detach")
    assert machine.run("stop") == "stopped\n"
    assert not is_held(machine.home)
    assert machine.run("stop").startswith("no service runs in")


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child, *descendants(child)}
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_serve_starts_as_many_workers_as_it_is_told(tmp_path: Path) -> None:
    """All of them train; uploads are checked by one."""
    machine = Machine(tmp_path)
    with machine.start("serve", "--port", "0", "--workers", "2") as serving:
        try:
            until(lambda: running(machine.home), for_s=180)
            known = running(machine.home)
            assert known is not None

            def alive() -> bool:
                return "graft_workers_alive 2.0" in httpx.get(f"{known.url}/metrics", timeout=10).text

            until(alive, for_s=180)
        finally:
            stop(machine.home)
            serving.communicate(timeout=60)
