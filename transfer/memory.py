"""How much memory this process holds on a device, and how much it held at most."""

import ctypes
import gc
import resource
from contextlib import suppress
from pathlib import Path

import torch

_PROCESS = Path("/proc/self")  # of Linux; elsewhere the largest resident set of the process's whole life has to do


def is_exhausted(error: BaseException) -> bool:
    """Whether an allocation failed. On a CPU torch and oneDNN say so in words alone."""
    said = str(error)
    in_words = "can't allocate memory" in said or "could not create a" in said  # memory, a primitive
    return in_words or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def empty_cache(device: torch.device) -> None:
    """Give back what the allocator keeps for later."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(AttributeError, OSError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


def index_of(device: str | torch.device) -> int:
    """The number of a GPU; that of the present one where none is given."""
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


def held_bytes(device: str) -> int:
    """What is held now: tensors on a GPU, the resident set on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def own_bytes(device: str) -> int:
    """What is held now and shared with nobody: tensors on a GPU, pages that come from no file on a CPU; 0 where the
    system does not tell."""
    if device.startswith("cuda"):
        return held_bytes(device)
    return _status("RssAnon") if (_PROCESS / "status").exists() else 0


def peak_bytes(device: str) -> int:
    """The most that was held since `forget_peak`."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5", "ascii")


def _status(field: str) -> int:
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text("ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
