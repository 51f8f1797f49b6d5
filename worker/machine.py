"""What a worker found on its machine: device, precision, threads, memory.

`python -m worker.machine` prints the bytes of memory of each graphics card, as JSON.
"""

import json
import os
import platform
import sys
from pathlib import Path

import torch

from models.build import build
from transfer import pace
from transfer.memory import index_of

Facts = dict[str, str | int | float | bool]
TIMED = "resnet18", 64  # pixels


def describe_machine(
    device: str = "auto", precision: str = "auto", n_threads: int = 0, memory_bytes: int | None = None
) -> Facts:
    """Resolve "auto": the first GPU where there is one; one thread, for `threads` to say otherwise.

    As a precision it stays where the hardware has bfloat16, to be timed network by network, and is float32 elsewhere.
    `memory_bytes` is this process's share of the device: a GPU is held to it, on a CPU the probe of a job keeps to it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    facts: Facts = {"device": device, "torch": torch.__version__, "python": platform.python_version()}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        total = properties.total_memory
        if memory_bytes is not None and memory_bytes < total:
            torch.cuda.set_per_process_memory_fraction(memory_bytes / total, index_of(device))
        facts |= {"device_name": properties.name, "memory_bytes": min(total, memory_bytes or total)}
        if precision == "auto":
            with torch.cuda.device(device):
                precision = "auto" if torch.cuda.is_bf16_supported() else "float32"
    else:
        total = _memory_bytes()
        facts |= {"device_name": platform.processor() or platform.machine()}
        facts |= {"memory_bytes": min(total, memory_bytes or total)}
        if precision == "auto":
            precision = "auto" if _multiplies_bfloat16() else "float32"
    return facts | {"precision": precision, "n_threads": n_threads or 1, "n_cores": os.cpu_count() or 1}


def threads(most: int, paces: Path | None) -> int:
    """How many threads a trial has on a CPU: one, for a worker on every core trains most and two OpenMP threads on a
    busy core are several times slower than one; of `most` cores that no other worker has, as many as steps of a usual
    network are faster by, timed once a machine."""
    if most == 1:
        return 1

    def measure() -> pace.Page:
        net = build(TIMED[0], n_classes=2, seed=0)
        inputs = torch.zeros(pace.N_ITEMS, 3, TIMED[1], TIMED[1]).contiguous(memory_format=torch.channels_last)
        targets = torch.zeros(pace.N_ITEMS, dtype=torch.long)
        seconds = pace.measured_threads(net.to(memory_format=torch.channels_last), inputs, targets, most)
        return {"seconds": list(seconds.items()), "n_threads": pace.chosen_threads(seconds)}

    facts: pace.Facts = {"asked": "threads", "machine": pace.machine_name(torch.device("cpu")), "most": most}
    page = pace.remembered(facts, paces, measure, is_whole=lambda page: 1 <= page["n_threads"] <= most)
    return int(page["n_threads"])


def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for it; without them it is emulated."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _memory_bytes() -> int:
    """This process may use: the control group's limit where there is one, else the machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def cards() -> list[int]:
    """Bytes of memory of each GPU that torch can use, in its order."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [int(torch.cuda.get_device_properties(card).total_memory) for card in range(n)]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(cards()) + "\n")
