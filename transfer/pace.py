"""Is bfloat16 faster for this network on this machine? Another memory layout? Are compiled stages? Is it quicker to
read what frozen stages make of a picture than to compute it? A few steps are timed once, and the answer is kept.

Autocast wins where the machine multiplies bfloat16 matrices in hardware and the network spends its time there; networks
of depthwise convolutions lose by it on many CPUs. So each backbone, resolution and depth of freezing is asked for
itself. The answer lies in a folder that the workers of a machine share: a trial has the same bits whichever of them
trains it.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.nn import functional

from models.network import Network
from transfer.memory import is_exhausted

# Of each the usual one first.
Precision = Literal["float32", "bfloat16"]
Layout = Literal["channels_last", "contiguous"]
FORMATS: Mapping[Layout, torch.memory_format] = {
    "channels_last": torch.channels_last, "contiguous": torch.contiguous_format,
}  # fmt: skip
Name = TypeVar("Name", bound=str)

N_ITEMS = 16
N_ROUNDS = 3
QUICK_S = 0.02  # a step so quick is left as it is
MARGIN = 1.15  # by which what is not usual must win
HOPELESS = 1.3  # times the seconds of what is usual: no further round

Facts = Mapping[str, str | int]
Page = Mapping[str, Any]  # as noted: the facts, and what was measured of them

KNOWN: dict[str, Page] = {}


class Keeping(NamedTuple):
    """Seconds an item: what frozen stages make of a new look at it, computed, and read from where it is kept."""

    computing_s: float
    reading_s: float


def faster(facts: Facts, folder: Path | None, measure: Callable[[], Mapping[Precision, float]]) -> Precision:
    """The faster of float32 and bfloat16 autocast for training what `facts` describe: as `folder` has it noted for this
    kind of machine, or else as `measure` finds, in seconds a step."""

    def find() -> Page:
        seconds = dict(measure())
        return {"seconds": seconds, "precision": chosen(seconds)}

    found = remembered(facts, folder, find, is_whole=lambda page: page["precision"] in ("float32", "bfloat16"))
    precision: Precision = found["precision"]
    return precision


def remembered(
    facts: Facts, folder: Path | None, measure: Callable[[], Page], *, is_whole: Callable[[Page], bool]
) -> Page:
    """What `folder` has noted of `facts` for this kind of machine, or else what `measure` finds, noted from now on."""
    named = json.dumps([*sorted(facts.items()), torch.__version__], sort_keys=True)
    name = hashlib.sha256(named.encode()).hexdigest()[:32]
    if name not in KNOWN:
        noted = None if folder is None else _noted(folder / f"{name}.json", is_whole)
        if noted is None:
            noted = {**facts, **measure()}
            if folder is not None:
                noted = _note(folder / f"{name}.json", noted, is_whole) or noted
        KNOWN[name] = noted
    return KNOWN[name]


def chosen(seconds: Mapping[Precision, float]) -> Precision:
    """bfloat16 if its step is quicker by the margin, and float32 is not quick enough anyway."""
    quick = seconds["float32"] < QUICK_S or seconds["bfloat16"] * MARGIN >= seconds["float32"]
    return "float32" if quick else "bfloat16"


def measured(net: Network, inputs: Tensor, targets: Tensor, n_frozen: int) -> dict[Precision, float]:
    """Seconds of a training step above the first `n_frozen` stages in each precision."""
    freeze(net, n_frozen)

    def step(precision: Precision) -> None:
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            logits = net(inputs)
        _learn(net, logits, targets)

    return _in_turn({precision: partial(step, precision) for precision in get_args(Precision)}, inputs.device)


def layout(facts: Facts, folder: Path | None, measure: Callable[[], Mapping[Layout, float]]) -> Layout:
    """The faster memory layout of pictures, activations and kernels for what `facts` describe, noted as precisions
    are: channels last, unless the other one wins by the margin."""

    def find() -> Page:
        seconds = dict(measure())
        wins = seconds["contiguous"] * MARGIN < seconds["channels_last"] and seconds["channels_last"] >= QUICK_S
        return {"seconds": seconds, "layout": "contiguous" if wins else "channels_last"}

    named = {**facts, "asked": "layout"}
    found: Layout = remembered(named, folder, find, is_whole=lambda p: p["layout"] in get_args(Layout))["layout"]
    return found


def measured_layouts(
    net: Network, inputs: Tensor, targets: Tensor, n_frozen: int, *, halves: bool = False
) -> dict[Layout, float]:
    """Seconds of a training step above the first `n_frozen` stages of a network, which lies channels last before and
    after, in either layout; `halves` under bfloat16 autocast."""
    freeze(net, n_frozen)

    def step(layout: Layout) -> None:
        lain = FORMATS[layout]
        net.to(memory_format=lain)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=halves):
            logits = net(inputs.contiguous(memory_format=lain))
        _learn(net, logits, targets)

    try:
        return _in_turn({layout: partial(step, layout) for layout in get_args(Layout)}, inputs.device)
    finally:
        net.to(memory_format=torch.channels_last)


def measured_threads(net: Network, inputs: Tensor, targets: Tensor, most: int) -> dict[int, float]:
    """Seconds of a training step with 1, 2, 4 … threads."""
    freeze(net, 0)
    seconds: dict[int, float] = {}
    for n in [1 << power for power in range(most.bit_length())]:
        torch.set_num_threads(n)
        seconds[n] = best_of(lambda: _learn(net, net(inputs), targets), inputs.device)
    return seconds


def chosen_threads(seconds: Mapping[int, float]) -> int:
    """Twice as many as long as that wins by the margin."""
    n = 1
    while 2 * n in seconds and seconds[2 * n] * MARGIN <= seconds[n]:
        n *= 2
    return n


def keeping(facts: Facts, folder: Path | None, measure: Callable[[], Keeping]) -> Keeping:
    """What computing and reading take for what `facts` describe, noted as precisions are."""

    def is_whole(page: Page) -> bool:
        return bool(page["computing_s"] > 0 and page["reading_s"] > 0)

    page = remembered({**facts, "asked": "keeping"}, folder, lambda: measure()._asdict(), is_whole=is_whole)
    return Keeping(float(page["computing_s"]), float(page["reading_s"]))


def best_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`, the best of a few times after the first."""
    return min([seconds_of(work, device) for _ in range(1 + N_ROUNDS)][1:])


def _learn(net: Network, logits: Tensor, targets: Tensor) -> None:
    functional.cross_entropy(logits.float(), targets).backward()
    for weight in net.parameters():
        weight.grad = None


def _in_turn(steps: Mapping[Name, Callable[[], None]], device: torch.device) -> dict[Name, float]:
    """Seconds of each step, the best of a few in turn; of fewer where the second does not come near the first."""
    best: dict[Name, float] = dict.fromkeys(steps, float("inf"))
    usual, other = best
    for number in range(1 + N_ROUNDS):
        for name, step in steps.items():
            try:
                seconds = seconds_of(step, device)
            except (RuntimeError, MemoryError) as error:
                if not is_exhausted(error):
                    raise
                continue  # for ever too slow
            if number > 0:  # the first pays for allocation and autotuning
                best[name] = min(best[name], seconds)
        if number > 0 and best[other] >= HOPELESS * best[usual]:
            break
    return best


def freeze(net: Network, n_frozen: int) -> None:
    """Ready to train above the first `n_frozen` stages."""
    net.train()
    for stage in net.stage_names[:n_frozen]:
        net.get_submodule(stage).eval().requires_grad_(False)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def machine_name(device: torch.device) -> str:
    """What kind of machine computes."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def _noted(file: Path, is_whole: Callable[[Page], bool]) -> Page | None:
    try:
        page = json.loads(file.read_text("utf-8"))
        return page if is_whole(page) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _note(file: Path, page: Page, is_whole: Callable[[Page], bool]) -> Page | None:
    """What is noted in the end: another process may have been faster, and then its answer counts."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(page), "utf-8")
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, file)
        if _noted(file, is_whole) is None:  # what is there is damaged
            unfinished.replace(file)
        else:
            unfinished.unlink()
    return _noted(file, is_whole)
