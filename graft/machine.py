"""What this machine has for workers: cores, memory, graphics cards; and who gets which of them."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
MOST = 8  # workers without a card, unless more are asked for: trials at a time learn nothing of each other
WORKER_BYTES = 3 * GIB  # of memory for each of them
MOST_ON_CARD = 4
CARD_BYTES = 20 * 10**9  # of a card's memory for each trial that shares it
CONTEXT_BYTES = GIB  # of each of them, outside of what torch allots
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, of AMD, under WSL
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """`cards` holds the bytes of memory of each graphics card, as torch numbers them."""

    n_cores: int
    memory_bytes: int
    cards: tuple[int, ...] = ()


def look(environment: Mapping[str, str]) -> Machine:
    """`environment` is what workers are started in."""
    return Machine(_n_cores(), _memory_bytes(), _cards(environment))


def shares(machine: Machine, given: Mapping[str, str], n_workers: int | None = None) -> list[dict[str, str]]:
    """The settings of each worker of this machine that are not given: its card, its share of the memory, the threads
    that it may try. Where no number is said: with cards as many as these hold trials, else one for every core."""
    device, threads = given.get("GRAFT_DEVICE") or "auto", _number(given.get("GRAFT_N_THREADS"))
    least = _number(given.get("GRAFT_DEVICE_MEMORY_BYTES"))  # of memory, for each of them
    if device.startswith("cuda") or (machine.cards and device == "auto"):
        found = _on_cards(machine, device, n_workers, least)
    else:
        bears = machine.n_cores // max(1, threads), machine.memory_bytes // max(WORKER_BYTES, least), MOST
        n = n_workers or max(1, min(bears))
        spare = 1 if threads else max(1, machine.n_cores // n)
        own = {"GRAFT_DEVICE_MEMORY_BYTES": str(machine.memory_bytes // n), "GRAFT_MAX_THREADS": str(spare)}
        found = [own] * n
    return [{name: value for name, value in own.items() if not given.get(name)} for own in found]


def _on_cards(machine: Machine, device: str, n_workers: int | None, least: int) -> list[dict[str, str]]:
    """Workers in turn on each card. Those on cards of one size have equal parts of it, for any of them may be the one
    that finds out which batches fit."""
    cards, number = machine.cards, _number(device.partition(":")[2])
    usable = [card for card in range(len(cards)) if device == "auto" or card == number]
    if not usable:
        return [{}] * (n_workers or 1)  # the worker says what is wrong
    most = min(MOST_ON_CARD, max(1, machine.n_cores // len(usable)))
    room = {card: max(1, min(most, cards[card] // max(CARD_BYTES, least))) for card in usable}
    if n_workers is None:
        chosen = [card for place in range(MOST_ON_CARD) for card in usable if place < room[card]]
    else:
        chosen = [usable[place % len(usable)] for place in range(n_workers)]

    def own(card: int) -> dict[str, str]:
        n = max(chosen.count(other) for other in chosen if cards[other] == cards[card])
        spared = CONTEXT_BYTES if n > 1 else 0
        return {"GRAFT_DEVICE": f"cuda:{card}", "GRAFT_DEVICE_MEMORY_BYTES": str(cards[card] // n - spared)}

    return [own(card) for card in chosen]


def _number(said: str | None) -> int:
    """0 where none is said: the worker says what is wrong with others."""
    return int(said) if said and said.isdecimal() else 0


def _n_cores() -> int:
    """That this process may use."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # "max", or no control group
        quota, period = (_CGROUP / "cpu.max").read_text("ascii").split()
        n = min(n, -(-int(quota) // int(period)))
    return max(1, n)


def _memory_bytes() -> int:
    n_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        n_bytes = min(n_bytes, int((_CGROUP / "memory.max").read_text("ascii")))
    return n_bytes


def _cards(environment: Mapping[str, str]) -> tuple[int, ...]:
    """As torch sees them, which knows its own order of cards and who may use which: asked in a process of its own, for
    that takes seconds, and only where there may be any."""
    if not any(Path(driver).exists() for driver in DRIVERS):
        return ()
    asked = [sys.executable, "-m", "worker.machine"]
    try:
        told = subprocess.run(asked, env=dict(environment), capture_output=True, text=True, timeout=120, check=True)
        return tuple(map(int, json.loads(told.stdout)))
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
