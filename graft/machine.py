"""What this machine has for workers, found without torch: cores, memory, graphics cards; and who gets which of them."""

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
MOST = 8  # workers without a card, unless more are asked for: trials at a time learn nothing of each other
WORKER_BYTES = 3 * GIB  # of memory for each of them
MOST_ON_CARD = 4
CARD_BYTES = 20 * GIB  # of a card's memory for each trial that shares it
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Machine:
    """`cards` holds the bytes of memory of each graphics card that may be used, as CUDA numbers them."""

    n_cores: int
    memory_bytes: int
    cards: tuple[int, ...] = ()


def look() -> Machine:
    return Machine(_n_cores(), _memory_bytes(), _cards())


def shares(machine: Machine, given: Mapping[str, str], n_workers: int | None = None) -> list[dict[str, str]]:
    """The settings of each worker of this machine that are not given: its card, its share of the memory, the threads
    that it may try. Where no number is said: with cards as many as these hold trials, else one for every core."""
    device, said = given.get("GRAFT_DEVICE") or "auto", given.get("GRAFT_N_THREADS", "")
    threads = int(said) if said.isdecimal() else 0  # the worker says what is wrong with others
    if machine.cards and device != "cpu":
        found = _on_cards(machine, device, n_workers)
    else:
        n = n_workers or max(1, min(machine.n_cores // max(1, threads), machine.memory_bytes // WORKER_BYTES, MOST))
        spare = 1 if threads else max(1, machine.n_cores // n)
        own = {"GRAFT_DEVICE_MEMORY_BYTES": str(machine.memory_bytes // n), "GRAFT_MAX_THREADS": str(spare)}
        found = [own] * n
    return [{name: value for name, value in own.items() if not given.get(name)} for own in found]


def _on_cards(machine: Machine, device: str, n_workers: int | None) -> list[dict[str, str]]:
    """Workers in turn on each card; those that share one have equal parts of its memory."""
    number = device.partition(":")[2] or "0"
    usable = range(len(machine.cards)) if device == "auto" else [int(number)] if number.isdecimal() else []
    usable = [card for card in usable if card < len(machine.cards)]
    if not usable:
        return [{}] * (n_workers or 1)  # the worker says what is wrong
    most = min(MOST_ON_CARD, max(1, machine.n_cores // len(usable)))
    room = {card: max(1, min(most, machine.cards[card] // CARD_BYTES)) for card in usable}
    if n_workers is None:
        chosen = [card for place in range(MOST_ON_CARD) for card in usable if place < room[card]]
    else:
        chosen = [usable[place % len(usable)] for place in range(n_workers)]
    return [
        {"GRAFT_DEVICE": f"cuda:{card}", "GRAFT_DEVICE_MEMORY_BYTES": str(machine.cards[card] // chosen.count(card))}
        for card in chosen
    ]


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


def _cards() -> tuple[int, ...]:
    """Of NVIDIA's, as far as the driver's own tool tells and `CUDA_VISIBLE_DEVICES` lets through."""
    asked = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    memory: dict[str, int] = {}
    for line in told.splitlines():
        with suppress(ValueError):  # a card in a mode of its own has no such figures
            index, uuid, mebibytes = (word.strip() for word in line.split(","))
            memory[index] = memory[uuid] = int(mebibytes) << 20
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(n_bytes for name, n_bytes in memory.items() if name.isdecimal())
    return tuple(memory[name.strip()] for name in visible.split(",") if name.strip() in memory)
