"""Is bfloat16 faster for this network on this machine? A few steps of both are timed once, and the answer is kept.

Autocast wins where the machine multiplies bfloat16 matrices in hardware and the network spends its time there; networks
of depthwise convolutions lose by it on many CPUs. So each backbone, resolution and depth of freezing is asked
for itself. The answer lies in a folder that the workers of a machine share: a trial has the same bits whichever
of them trains it.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from transfer.setting import Setting

Precision = Literal["float32", "bfloat16"]

N_ITEMS = 16
N_ROUNDS = 3
QUICK_S = 0.02  # a step so quick is left as it is
MARGIN = 1.15  # by which bfloat16 must win

KNOWN: dict[str, Precision] = {}


def faster(setting: "Setting", n_frozen: int) -> Precision:
    """The faster of float32 and bfloat16 autocast for training the network above its first `n_frozen` stages."""
    facts = {
        "backbone": setting.recipe.backbone, "resolution": setting.recipe.data.resolution, "n_frozen": n_frozen,
        "device": _name(setting.device), "n_threads": setting.order.n_threads, "torch": torch.__version__,
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    folder = None if setting.order.paces is None else Path(setting.order.paces)
    if name not in KNOWN:
        noted = None if folder is None else _noted(folder / f"{name}.json")
        if noted is None:
            times = measured(setting, n_frozen)
            noted = chosen(times)
            if folder is not None:
                noted = _note(folder / f"{name}.json", facts | {"seconds": times, "precision": noted}) or noted
        KNOWN[name] = noted
    return KNOWN[name]


def chosen(seconds: Mapping[Precision, float]) -> Precision:
    """bfloat16 if its step is quicker by the margin, and float32 is not quick enough anyway."""
    quick = seconds["float32"] < QUICK_S or seconds["bfloat16"] * MARGIN >= seconds["float32"]
    return "float32" if quick else "bfloat16"


def measured(setting: "Setting", n_frozen: int) -> dict[Precision, float]:
    """Seconds of a training step of `N_ITEMS` items in each precision, the best of a few taken in turn."""
    net, _ = setting.borrow(0)
    net.train()
    for stage in net.stage_names[:n_frozen]:
        net.get_submodule(stage).eval().requires_grad_(False)
    items = np.resize(np.arange(len(setting.pack.labels)), N_ITEMS)
    inputs, targets = setting.problem.evaluation_inputs(items), setting.problem.targets(items)

    def step(precision: Precision) -> None:
        bfloat16 = torch.autocast(setting.device.type, dtype=torch.bfloat16)
        with bfloat16 if precision == "bfloat16" else nullcontext():
            logits = net(inputs)
        functional.cross_entropy(logits.float(), targets).backward()
        for weight in net.parameters():
            weight.grad = None

    best: dict[Precision, float] = {"float32": float("inf"), "bfloat16": float("inf")}
    for number in range(1 + N_ROUNDS):
        for precision in best:
            seconds = _seconds(lambda p=precision: step(p), setting.device)  # type: ignore[misc]
            if number > 0:  # the first pays for allocation and autotuning
                best[precision] = min(best[precision], seconds)
    setting.give_back(net)
    return best


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def _noted(file: Path) -> Precision | None:
    try:
        precision = json.loads(file.read_text("utf-8"))["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return precision if precision in ("float32", "bfloat16") else None


def _note(file: Path, facts: dict[str, object]) -> Precision | None:
    """What is noted in the end: another process may have been faster, and then its answer counts."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        partial.write_text(json.dumps(facts), "utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(partial, file)
        partial.unlink()
    return _noted(file)
