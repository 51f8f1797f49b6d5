"""How many workers a machine gets, and what each of them has."""

import os
from pathlib import Path

import pytest

from graft.machine import GIB, Machine, look, shares
from store.settings import load


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


def test_every_card_gets_workers_and_those_on_one_card_share_its_memory() -> None:
    two = Machine(16, 128 * GIB, (24 * GIB, 80 * GIB))
    told = [(own["GRAFT_DEVICE"], int(own["GRAFT_DEVICE_MEMORY_BYTES"])) for own in shares(two, {})]
    assert told == [("cuda:0", 24 * GIB), *[("cuda:1", 20 * GIB)] * 4]
    told = [(own["GRAFT_DEVICE"], int(own["GRAFT_DEVICE_MEMORY_BYTES"])) for own in shares(two, {}, 3)]
    assert told == [("cuda:0", 12 * GIB), ("cuda:1", 80 * GIB), ("cuda:0", 12 * GIB)]
    assert len(shares(Machine(2, 16 * GIB, (80 * GIB,)), {})) == 2, "every trial wants a core beside the card"


def test_what_is_given_is_left_alone() -> None:
    card = Machine(8, 64 * GIB, (80 * GIB, 80 * GIB))
    assert shares(card, {"GRAFT_DEVICE": "cpu", "GRAFT_DEVICE_MEMORY_BYTES": "7"}, 1) == [{"GRAFT_MAX_THREADS": "8"}]
    assert shares(card, {"GRAFT_DEVICE": "cuda:1"}, 2) == [{"GRAFT_DEVICE_MEMORY_BYTES": str(40 * GIB)}] * 2
    assert shares(card, {"GRAFT_DEVICE": "cuda:7"}, 2) == [{}, {}], "the worker says what is wrong"


def test_this_machine_is_looked_at_and_workers_understand_what_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = look()
    assert 1 <= machine.n_cores <= (os.cpu_count() or 1)
    assert machine.memory_bytes > 100 << 20
    for name, value in shares(machine, {})[0].items():
        monkeypatch.setenv(name, value)
    assert load().device_memory_bytes is not None


@pytest.mark.parametrize(
    ("visible", "cards"),
    [(None, (24 * GIB, 80 * GIB)), ("1", (80 * GIB,)), ("GPU-b, GPU-a", (80 * GIB, 24 * GIB)), ("", ()), ("-1", ())],
)
def test_cards_are_those_that_the_driver_tells_and_cuda_shows(
    visible: str | None, cards: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '0, GPU-a, {24 * 1024}'\necho '1, GPU-b, {80 * 1024}'\necho '2, GPU-c, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert look().cards == cards
