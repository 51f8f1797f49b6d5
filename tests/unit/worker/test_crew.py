"""Real trial processes: what they know, what they leave behind, and that none outlives its parent."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from store.settings import Settings
from tests.servers import wait_until
from tests.toys import make_order, make_recipe, write_pack
from transfer import memory, warm
from worker.crew import ChildDied, Crew
from worker.wear import Wear
from worker.wire import (
    Done,
    Ended,
    FirstStep,
    FromChild,
    Message,
    ProbeLot,
    Refused,
    Reported,
    RunLot,
    receive_news,
    send,
)  # fmt: skip

ROOT = Path(__file__).parents[3]
SECRETS = {
    "GRAFT_DATABASE_URL": "postgresql://u:p@h/d", "GRAFT_REDIS_URL": "redis://h", "GRAFT_BOOTSTRAP_KEY": "k",
    "DATABASE_URL": "postgresql://h/d", "PGPASSWORD": "p", "AWS_SECRET_ACCESS_KEY": "s", "AWS_PROFILE": "p",
    "GITHUB_TOKEN": "t",
}  # fmt: skip
PARENT = """
import sys, time
from pathlib import Path
from store.settings import Settings
from worker.crew import Crew
crew = Crew(Settings(home=Path(sys.argv[1]), device="cpu"))
crew.start()
print(crew.pid, flush=True)
time.sleep(600)
"""

LEAKY = """
import transfer.fit
begin, kept = transfer.fit.Fit.__init__, []

def leak(self, *given, **named):
    kept.append(bytearray(b"x") * (300 << 20))
    begin(self, *given, **named)

transfer.fit.Fit.__init__ = leak
"""

LIVELY = """
import worker.trial_process
worker.trial_process.ALIVE_EVERY_S = 0.0
worker.trial_process.main()
"""


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("crew") / "pack")


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    crew = Crew(Settings(home=tmp_path_factory.mktemp("crew"), device="cpu"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        crew.start()
    yield crew
    crew.stop()


def run(pack: Path, scratch: Path, steps: int) -> RunLot:
    scratch.mkdir(exist_ok=True)
    return RunLot(order=make_order(make_recipe(steps=steps), pack, None, scratch), resume_every_s=60.0)


def carry_out(crew: Crew, message: Message) -> list[FromChild]:
    with crew.order(message, timeout_s=1.0) as news:
        return [heard for heard in news if heard is not None]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_trial_process_is_told_no_secret(crew: Crew) -> None:
    environment = Path(f"/proc/{crew.pid}/environ").read_bytes().decode()
    names = {entry.partition("=")[0] for entry in environment.split("\0") if entry}
    assert "PATH" in names
    assert not names & set(SECRETS)
    assert not [name for name in names if name.startswith(("GRAFT_", "AWS_", "PG", "REDIS"))]


def test_numpy_has_no_more_threads_than_a_trial(crew: Crew) -> None:
    environment = Path(f"/proc/{crew.pid}/environ").read_bytes().decode().split("\0")
    assert "OPENBLAS_NUM_THREADS=1" in environment
    assert crew.facts["n_threads"] == 1


def test_orders_follow_one_another_in_one_warm_process(crew: Crew, pack: Path, tmp_path: Path) -> None:
    pid = crew.start() and crew.pid
    first = carry_out(crew, run(pack, tmp_path / "a", 12))
    assert [m.kind for m in first][:2] == ["first_step", "reported"]
    assert isinstance(first[-2], Ended)
    assert isinstance(first[-1], Done)
    found = carry_out(crew, ProbeLot(order=run(pack, tmp_path / "b", 12).order))[-1]
    assert isinstance(found, Done)
    assert crew.pid == pid


def test_a_wish_that_comes_too_late_means_nothing_to_the_next_order(crew: Crew, pack: Path, tmp_path: Path) -> None:
    pid = crew.start() and crew.pid
    carry_out(crew, run(pack, tmp_path / "a", 12))
    crew.wish("tr_1", "stop")
    ended = carry_out(crew, run(pack, tmp_path / "b", 12))[-2]
    assert isinstance(ended, Ended)
    assert ended.outcome.state == "COMPLETE"
    assert crew.pid == pid


def test_a_wish_is_obeyed_at_the_next_step(crew: Crew, pack: Path, tmp_path: Path) -> None:
    kinds: list[str] = []
    with crew.order(run(pack, tmp_path / "a", 2000), timeout_s=1.0) as news:
        for message in news:
            if isinstance(message, Reported) and "reported" not in kinds:
                crew.wish("tr_1", "pause")
            if message is not None:
                kinds.append(message.kind)
            if isinstance(message, Ended):
                assert message.outcome.state == "PAUSED"
    assert kinds[-3:] == ["resumable", "ended", "done"]


def test_an_order_that_is_left_takes_its_process_with_it(crew: Crew, pack: Path, tmp_path: Path) -> None:
    crew.start()
    pid = crew.pid

    def leave() -> None:
        with crew.order(run(pack, tmp_path / "a", 2000), timeout_s=1.0) as news:
            for message in news:
                if isinstance(message, Reported):
                    raise ConnectionError("the database is away")

    with pytest.raises(ConnectionError):
        leave()
    assert pid is not None
    assert not alive(pid)
    news = carry_out(crew, run(pack, tmp_path / "b", 12))
    assert next(m.kind for m in news) == "first_step", "nothing of the order before is heard"
    assert crew.pid != pid


def test_a_fault_of_ours_is_told_and_a_clean_process_takes_the_next_order(
    crew: Crew, pack: Path, tmp_path: Path
) -> None:
    (told,) = carry_out(crew, run(tmp_path / "no pack", tmp_path / "a", 12))
    assert isinstance(told, Refused)
    assert told.code == "crashed"
    assert isinstance(carry_out(crew, run(pack, tmp_path / "b", 12))[-1], Done)


def test_a_process_that_says_nothing_is_as_good_as_dead(crew: Crew, pack: Path, tmp_path: Path) -> None:
    crew.start()
    pid = crew.pid
    assert pid is not None

    def hang() -> None:
        with crew.order(run(pack, tmp_path / "a", 100_000), timeout_s=0.1, silent_s=3.0) as news:
            for message in news:
                if isinstance(message, FirstStep):
                    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(ChildDied, match="said nothing for 3 s"):
        hang()
    assert not alive(pid)


@pytest.mark.parametrize("message", [RunLot, ProbeLot])
def test_long_work_gives_signs_of_life(pack: Path, tmp_path: Path, message: type[RunLot] | type[ProbeLot]) -> None:
    """A child that says so at every look, and not once a minute: it looks before each step at the latest."""
    ours, theirs = socket.socketpair()
    child = subprocess.Popen([sys.executable, "-c", LIVELY, str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()])
    theirs.close()
    told = run(pack, tmp_path / "a", 8)
    with Connection(ours.detach()) as line:
        assert receive_news(line).kind == "hello"
        send(line, told if message is RunLot else ProbeLot(order=told.order))
        kinds = [receive_news(line).kind]
        while kinds[-1] != "done":
            kinds.append(receive_news(line).kind)
    child.wait()
    n_before = kinds.index("reported" if message is RunLot else "done")
    assert kinds[:n_before].count("alive") >= 2, "the first report comes after a quarter of the steps"


def test_a_process_that_leaks_is_replaced_between_orders(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2 GiB that it may use, every trial keeps 300 MB."""
    (tmp_path / "sitecustomize.py").write_text(LEAKY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    crew = Crew(Settings(home=tmp_path, device="cpu", device_memory_bytes=2 << 30))
    pids: list[int | None] = []
    news: list[list[FromChild]] = []
    try:
        for n in range(4):
            crew.start()
            pids.append(crew.pid)
            news.append(carry_out(crew, run(pack, tmp_path / str(n), 8)))
    finally:
        crew.stop()
    assert [told[-2].outcome.state for told in news if isinstance(told[-2], Ended)] == ["COMPLETE"] * 4
    assert pids[0] == pids[1], "one trial's memory is nothing to look into"
    assert pids[1] != pids[2] == pids[3]


def test_what_is_kept_on_purpose_is_no_leak() -> None:
    shelf: warm.Shelf[bytearray] = warm.Shelf(10)
    warm.forget()
    memory.empty_cache(torch.device("cpu"))  # what other tests have left is no part of what this one gives back
    wear = Wear("cpu", 2 << 30)
    shelf.put("much", bytearray(b"x") * (600 << 20))
    assert not wear.is_worn()
    assert shelf.take("much") is None, "it was looked into"
    kept = bytearray(b"x") * (1300 << 20)
    assert wear.is_worn()
    assert len(kept) > 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, "out_of_memory"), (signal.SIGSEGV, "crashed")], ids=["SIGKILL", "SIGSEGV"]
)
def test_a_process_that_is_killed_says_how(
    crew: Crew, pack: Path, tmp_path: Path, number: signal.Signals, code: str
) -> None:
    def cut_off() -> None:
        with crew.order(run(pack, tmp_path / "a", 2000), timeout_s=1.0) as news:
            for message in news:
                if isinstance(message, Reported) and crew.pid is not None:
                    os.kill(crew.pid, number)
                    crew.wish("tr_1", "stop")  # to a process that is not there

    with pytest.raises(ChildDied, match=number.name) as died:
        cut_off()
    assert died.value.code == code


def test_no_trial_process_outlives_a_killed_worker(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not alive(pid), for_s=10.0)


def test_cores_that_nobody_else_has_become_threads_if_a_clock_says_so(tmp_path: Path) -> None:
    """What is noted of the machine holds for every trial process after it."""
    crew = Crew(Settings(home=tmp_path, device="cpu", max_threads=2))
    crew.start()
    found = crew.facts["n_threads"]
    crew.stop()
    (note,) = (tmp_path / "cache" / "paces").glob("*.json")
    told = json.loads(note.read_text())
    assert found == told["n_threads"]
    assert [n for n, seconds in told["seconds"] if seconds > 0] == [1, 2]
    note.write_text(json.dumps(told | {"n_threads": 3 - int(found)}))
    crew.start()
    assert crew.facts["n_threads"] == 3 - int(found)
    crew.stop()
