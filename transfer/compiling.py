"""Stages compiled for training, on accelerators, where that was measured to win.

A stage is compiled by itself, so that everything between stages (taps, kept activations, losses of parts) stays plain
Python. `graphs` replays its kernels as a CUDA graph besides: it wins where launching them takes longer than they run.
Evaluation and extraction stay eager, and so does a batch that is taken in parts.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.network import Network
from transfer.memory import is_exhausted
from transfer.pace import MARGIN, N_ROUNDS, Page, freeze, seconds_of

log = logging.getLogger(__name__)

Mode = Literal["eager", "compiled", "graphs"]
Stages = Mapping[str, Callable[[Tensor], Tensor]]

SHARED_BY = 4  # trials of a worker that use what was compiled once, by a cautious guess
QUICKEST_S = 20.0  # no network was compiled faster
VARIANTS = 64  # of a stage that a process may compile: batch sizes, depths of freezing, modes of batch norm
_COMPILED: "WeakKeyDictionary[Network, dict[Mode, Stages]]" = WeakKeyDictionary()


def stages(net: Network, mode: Mode) -> Stages:
    """The stages of a network as `mode` runs them: none of them are replaced for "eager". They share its weights, and
    are compiled when they are first called; what cannot be is an error there."""
    if mode == "eager":
        return {}
    modes = _COMPILED.setdefault(net, {})
    if mode not in modes:
        # Stages are sequences, whose code is one and the same: each counts its own variants.
        compiled = partial(
            torch.compile, mode="reduce-overhead" if mode == "graphs" else "default", dynamic=False, fullgraph=True,
            isolate_recompiles=True, recompile_limit=VARIANTS,
        )  # fmt: skip
        modes[mode] = {name: compiled(stage) for name, stage in net.stages.items()}
    return modes[mode]


def forget() -> None:
    """Give back what was compiled, and the memory that its graphs hold."""
    if _COMPILED:
        _COMPILED.clear()
        torch.compiler.reset()


def begin_step(mode: Mode) -> None:
    """What the graphs of the step before have left in memory is not needed any more."""
    if mode == "graphs":
        torch.compiler.cudagraph_mark_step_begin()


def hopeless(eager_s: float, n_steps: int) -> bool:
    """Whether compiling cannot be paid back by a few trials of `n_steps`, were their steps to take no time at all."""
    return SHARED_BY * n_steps * eager_s < QUICKEST_S


def chosen(page: Page, n_steps: int) -> Mode:
    """The mode that is quicker by the margin and, with what compiling took, saves most in a few trials of `n_steps`."""
    seconds, compile_s = page["seconds"], page["compile_s"]
    saved: dict[Mode, float] = {
        mode: SHARED_BY * n_steps * (seconds["eager"] - seconds[mode]) - compile_s[mode]
        for mode in get_args(Mode) if mode != "eager" and seconds.get(mode, float("inf")) * MARGIN < seconds["eager"]
    }  # fmt: skip
    best = max(saved, key=lambda mode: saved[mode], default=None)
    return best if best is not None and saved[best] > 0 else "eager"


def is_whole(page: Page) -> bool:
    """Whether a note of what was measured can be read."""
    return page["seconds"]["eager"] > 0 and set(page["compile_s"]) == set(page["seconds"]) - {"eager"}


def measured(
    net: Network, inputs: Tensor, targets: Tensor, n_frozen: int, autocast: Callable[[], Any], *,
    still_norms: bool = False, modes: tuple[Mode, ...] = get_args(Mode),
) -> Page:  # fmt: skip
    """Seconds of a training step above the first `n_frozen` stages in each mode, and of compiling for it. What cannot
    be compiled here is left out; memory that is too short is an error. `still_norms` only look at their statistics."""
    freeze(net, n_frozen)
    for module in net.modules():
        if still_norms and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    seconds: dict[str, float] = {}
    compile_s: dict[str, float] = {}

    def step(mode: Mode) -> None:
        begin_step(mode)
        with autocast():
            logits = net.look(inputs, stages=stages(net, mode)).logits
        functional.cross_entropy(logits.float(), targets).backward()
        for weight in net.parameters():
            weight.grad = None

    for mode in modes:
        try:
            first = [seconds_of(partial(step, mode), inputs.device) for _ in range(3)]  # graphs: seen, recorded, run
            best = min(seconds_of(partial(step, mode), inputs.device) for _ in range(N_ROUNDS))
        except Exception as error:
            if mode == "eager" or is_exhausted(error):
                raise
            log.warning("stages of %s cannot be %s: %s", net.backbone, mode, error)
            continue
        seconds[mode] = best
        if mode != "eager":
            compile_s[mode] = max(0.0, sum(first) - len(first) * best)
    return {"seconds": seconds, "compile_s": compile_s}
