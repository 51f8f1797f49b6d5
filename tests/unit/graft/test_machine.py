"""How many workers a machine gets, and what each of them has."""

import json
import os
import subprocess
import sys

import pytest

from graft.machine import CONTEXT_BYTES, GIB, Machine, look, shares
from graft.serving import child_environment
from store.settings import load
from worker.machine import cards


def test_without_cards_there_is_a_worker_for_every_core_that_memory_bears() -> None:
    assert (
        shares(Machine(2, 24 * GIB), {}) == [{"GRAFT_DEVICE_MEMORY_BYTES": str(12 * GIB), "GRAFT_MAX_THREADS": "1"}] * 2
    )
    assert len(shares(Machine(8, 7 * GIB), {})) == 2
    assert len(shares(Machine(1, GIB), {})) == 1
    assert len(shares(Machine(8, 64 * GIB), {"GRAFT_N_THREADS": "4"})) == 2


def test_cores_that_no_worker_has_may_become_threads() -> None:
    many = shares(Machine(64, 256 * GIB), {})
    assert len(many) == 8, "trials at a time learn nothing of each other"
    assert {own["GRAFT_MAX_THREADS"] for own in many} == {"8"}
    assert shares(Machine(4, 24 * GIB), {}, 1)[0]["GRAFT_MAX_THREADS"] == "4"
    assert shares(Machine(4, 24 * GIB), {"GRAFT_N_THREADS": "1"}, 1)[0]["GRAFT_MAX_THREADS"] == "1"


def told(machine: Machine, given: dict[str, str], n_workers: int | None = None) -> list[tuple[str, int]]:
    """Device and memory of each worker."""
    found = shares(machine, given, n_workers)
    return [(own["GRAFT_DEVICE"], int(own["GRAFT_DEVICE_MEMORY_BYTES"])) for own in found]


def test_every_card_gets_workers_and_those_on_one_card_share_its_memory() -> None:
    two, left = Machine(16, 128 * GIB, (24 * GIB, 80 * GIB)), CONTEXT_BYTES
    assert told(two, {}) == [("cuda:0", 24 * GIB), *[("cuda:1", 20 * GIB - left)] * 4]
    assert told(two, {}, 3) == [("cuda:0", 12 * GIB - left), ("cuda:1", 80 * GIB), ("cuda:0", 12 * GIB - left)]
    assert len(shares(Machine(2, 16 * GIB, (80 * GIB,)), {})) == 2, "every trial wants a core beside the card"


def test_on_equal_cards_every_worker_has_the_same_share() -> None:
    """Whoever probes a job finds out for all of them which batches fit."""
    share = 40 * GIB - CONTEXT_BYTES
    assert told(Machine(8, 64 * GIB, (80 * GIB,) * 2), {}, 3) == [
        ("cuda:0", share),
        ("cuda:1", share),
        ("cuda:0", share),
    ]


def test_what_is_given_is_left_alone() -> None:
    card = Machine(8, 64 * GIB, (80 * GIB, 80 * GIB))
    assert shares(card, {"GRAFT_DEVICE": "cpu", "GRAFT_DEVICE_MEMORY_BYTES": "7"}, 1) == [{"GRAFT_MAX_THREADS": "8"}]
    share = str(40 * GIB - CONTEXT_BYTES)
    assert shares(card, {"GRAFT_DEVICE": "cuda:1"}, 2) == [{"GRAFT_DEVICE_MEMORY_BYTES": share}] * 2
    assert shares(card, {"GRAFT_DEVICE": "cuda:7"}, 2) == [{}, {}], "the worker says what is wrong"
    assert shares(Machine(8, 64 * GIB), {"GRAFT_DEVICE": "cuda"}) == [{}], "of its memory nothing is known"
    given = {"GRAFT_DEVICE_MEMORY_BYTES": str(40 * GIB)}
    assert shares(card, given) == [{"GRAFT_DEVICE": f"cuda:{n}"} for n in (0, 1, 0, 1)], "two times 40 on each"
    assert len(shares(Machine(8, 24 * GIB), {"GRAFT_DEVICE_MEMORY_BYTES": str(8 * GIB)})) == 3


def test_this_machine_is_looked_at_and_workers_understand_what_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = look(child_environment())
    assert 1 <= machine.n_cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes > 100 << 20
    for name, value in shares(machine, {})[0].items():
        monkeypatch.setenv(name, value)
    assert load().device_memory_bytes is not None


def test_cards_are_those_that_torch_can_use() -> None:
    asked = [sys.executable, "-m", "worker.machine"]
    told = subprocess.run(asked, env=child_environment(), capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == cards()
    assert look(child_environment()).cards == tuple(cards())
