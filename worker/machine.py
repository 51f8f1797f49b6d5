"""What a worker found on its machine: device, precision, threads, memory."""

import os
import platform
from pathlib import Path

import torch

from transfer.memory import index_of

Facts = dict[str, str | int | float | bool]


def describe_machine(
    device: str = "auto", precision: str = "auto", n_threads: int = 0, memory_bytes: int | None = None
) -> Facts:
    """Resolve "auto": the first GPU where there is one, one thread on CPU.

    As a precision it stays where the hardware has bfloat16, to be timed network by network, and is float32 elsewhere.

    One thread, because two OpenMP threads on a busy core are several times slower than one; start a worker per core.
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
            precision = "auto" if torch.cuda.is_bf16_supported() else "float32"
    else:
        total = _memory_bytes()
        facts |= {"device_name": platform.processor() or platform.machine()}
        facts |= {"memory_bytes": min(total, memory_bytes or total)}
        if precision == "auto":
            precision = "auto" if _multiplies_bfloat16() else "float32"
    return facts | {"precision": precision, "n_threads": n_threads or 1, "n_cores": os.cpu_count() or 1}


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
