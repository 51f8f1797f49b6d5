"""What does a step of each method cost next to a step of plain fine-tuning, in time and in memory?

All methods in one process on one thread, a step of each in turn, round after round; process CPU time, the median of the
ratios to the fine-tuning steps taken just before. Beside it what the maths predicts: forward 1, backward 2, so a step
is 3 and a second network that is only looked at adds 1/3.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.bounds import bandwidth_of_copy
from benchmarks.cost_maths import PREDICTED, WORDS_MOVED, WORDS_NEEDED, Sums
from benchmarks.method_cases import Case, Net, all_parts, packed
from benchmarks.method_run import Job, order_of
from benchmarks.pictures import archive
from benchmarks.table import Figure, quantile
from domain.lot import TeacherFiles
from domain.recipe import Part, Recipe
from models.build import build
from transfer.fit import Fit
from transfer.penalties import half_squared_distance

BACKBONES = ("resnet18", "mobilenet_v2")
RESOLUTION, BATCH, N_CLASSES = 64, 32, 4
# Of a trial: its first step warms up and is watched for its memory, the others are timed. Phases need more of them.
N_STEPS, N_STEPS_IN_PHASES, N_STEPS_OF_REFERENCE = 4, 6, 40
GROUP = 8
LONGEST_PREPARATION_S = 45.0
# Where a default prepares for minutes what no step depends on, the quick way to the same step.
QUICK: dict[str, dict[str, Any]] = {"delta": {"weighting": "gradient"}}


def measure() -> list[Figure]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it announces every start and stop
    torch.set_num_threads(1)
    figures = []
    for backbone in BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            figures += _compare(_case(Path(folder), backbone), folder)
    return figures


def _case(folder: Path, backbone: str) -> Case:
    """Made-up pictures and weights: what a step costs does not depend on what is in them."""
    upload = archive(folder / "upload.zip", n_classes=N_CLASSES, n_per_class=20, side=RESOLUTION)
    pack = packed(upload, folder, backbone, RESOLUTION, {"train": 0.8, "val": 0.1, "test": 0.1})
    weights = str(folder / "source.safetensors")
    save_file(build(backbone, n_classes=N_CLASSES, seed=11).state_dict(), weights)
    net = Net(backbone, weights, N_CLASSES)
    settings = {
        "data": {"batch_size": BATCH, "resolution": RESOLUTION, "augmentation": 0.5},
        "batch_norm": "train",
    }
    nets = {"main": net, "student": net, "teacher": net}
    return Case(backbone, True, str(pack), nets, settings, source_pack=str(pack))


# --- one trial, a step at a time


@dataclass
class Watched:
    """A trial whose steps are timed one by one."""

    name: str
    order: Any
    keeps_start: bool = False  # it could not do without w0
    phased: bool = False
    times: list[float] = field(default_factory=list)  # of every step but the first
    peak: int = 0  # bytes allocated at most during the first step
    extra: dict[str, int] = field(default_factory=dict)  # bytes that last from step to step, by what they are
    over: str | None = None  # why there is nothing (more) to time
    _began: float = 0.0
    _wrapped: Any = None

    def __post_init__(self) -> None:
        self.fit = Fit(self.order, stopped=self._asked)
        self._reports: Iterator[Any] = iter(self.fit)

    def go_on(self) -> list[float]:
        """To the next report: at least one step, unless the trial is over. The times of these steps."""
        n_before = len(self.times)
        self._began = time.process_time()
        if self.over is None and next(self._reports, None) is None:
            outcome = self.fit.outcome("tr_0")
            took = outcome.state == "COMPLETE"
            self.over = "done" if took else outcome.error or f"preparation takes over {LONGEST_PREPARATION_S:g} s"
        return self.times[n_before:]

    def _asked(self, _: str) -> str:
        """Called before every step, and now and then during a preparation."""
        loop = getattr(self._run, "loop", None)
        if loop is None:
            return "stop" if time.process_time() - self._began > LONGEST_PREPARATION_S else "go"
        if loop is not self._wrapped:
            self._wrapped, step = loop, loop._train_step
            loop._train_step = lambda *args: self._timed(step, *args)
        return "go"

    def _timed(self, step: Any, *args: Any) -> None:
        if not self.peak:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                step(*args)
            self.peak = _most_allocated(profiler)
        else:
            began = time.process_time()
            step(*args)
            self.times.append(time.process_time() - began)
        self.extra = self._kept()

    @property
    def _run(self) -> Any:
        return self.fit._trials["tr_0"].run

    def _kept(self) -> dict[str, int]:
        bench, loop = self._run.bench, self._run.loop
        known = vars(bench.setting)
        onlookers = [known[name] for name in ("source", "teachers") if known.get(name)] + [bench.previous]
        networks = [n for entry in onlookers for n in (entry if isinstance(entry, list | tuple) else [entry]) if n]
        kept = {
            "prepared": list(bench.prepared.values()),
            "averages": [t for s in loop.states.values() for t in (*s.tensors.values(), *s.averaged.values())],
            "other networks": [t for net in networks for t in net.state_dict().values()],
            "network": list(bench.net.state_dict().values()),
            # Every fit keeps its start; it is counted where the penalty could not do without.
            "w0": list(bench.start.values()) if self.keeps_start else [],
        }
        return {what: size_of(tensors) for what, tensors in kept.items()}


def size_of(tensors: list[Tensor]) -> int:
    """Bytes, those that share memory counted once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _most_allocated(profiler: Any) -> int:
    """The highest sum of all allocations less all releases since the profiler began."""
    now = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


# --- all of them


def _compare(case: Case, scratch: str) -> list[Figure]:
    """Round after round; beside every few methods runs a fine-tuning of their own, since machines change their pace."""
    methods = list(_methods(case, scratch))
    groups = [
        (_plain(case, f"{scratch}/plain{at}"), methods[at : at + GROUP]) for at in range(0, len(methods), GROUP)
    ]  # fmt: skip
    ratios: dict[str, list[float]] = {method.name: [] for method in methods}
    while any(method.over is None for method in methods):
        for plain, group in groups:
            if any(method.over is None for method in group):
                own = plain.go_on()
                for method in group:
                    ratios[method.name] += [took / quantile(own, 0.5) for took in method.go_on()]
    plain = groups[0][0]
    step_s = quantile([took for reference, _ in groups for took in reference.times], 0.5)
    figures = [
        Figure(f"{case.name}@{RESOLUTION}, batch {BATCH}: a step of plain fine-tuning", step_s, "s"),
        Figure(f"{case.name}: memory of a step of plain fine-tuning", plain.peak / 2**20, "MiB"),
    ]
    sums = Sums.of(build(case.name, n_classes=N_CLASSES), RESOLUTION, BATCH)
    bandwidth = bandwidth_of_copy(clock=time.process_time)
    word_s = 4 * sums.n_kernel_weights / bandwidth
    figures.append(Figure(f"{case.name}: bandwidth of a copy", bandwidth / 1e9, "GB/s"))
    figures += _penalty(case.name, sums, word_s, step_s)
    return figures + [
        _figure(case.name, method, plain, ratios[method.name], word_s / step_s) for method in methods
    ]  # fmt: skip


def _plain(case: Case, scratch: str) -> Watched:
    recipe = _recipe(case, N_STEPS_OF_REFERENCE, {})
    return Watched("plain fine-tuning", order_of(Job(case, "plain", "main", recipe), scratch))


def _recipe(case: Case, n_steps: int, slots: dict[str, Part]) -> Recipe:
    return case.recipe("main", slots, seed=0).model_copy(update={"steps": n_steps})


def _methods(case: Case, scratch: str) -> Iterator[Watched]:
    teacher = TeacherFiles(weights=str(case.nets["main"].weights), recipe=_recipe(case, N_STEPS, {}))
    for part in all_parts():
        name, params = f"{part.slot}.{part.name}", QUICK.get(part.name, {})
        phased = "phases" in part.functions
        slots = {part.slot: Part(name=part.name, params=params)}
        recipe = _recipe(case, N_STEPS_IN_PHASES if phased else N_STEPS, slots)
        if not case.refusals("main", recipe, all_parts()):
            given = teacher if "teacher" in part.needs_of(params) else None
            order = order_of(Job(case, name, "main", recipe, given), f"{scratch}/{name}")
            yield Watched(name, order, part.slot == "regularizer" and "start" in part.needs, phased)


def _figure(backbone: str, trial: Watched, plain: Watched, ratios: list[float], word_share: float) -> Figure:
    """One line of the table: the ratio, what was expected, and the memory."""
    prediction = PREDICTED.get(trial.name)
    expected = None if prediction is None else round(prediction.at(word_share), 3)
    columns: dict[str, Any] = {
        "predicted": expected,
        "because": None if prediction is None else prediction.because,
        "lowest": min(ratios, default=None), "highest": max(ratios, default=None), "n_steps": len(ratios),
    }  # fmt: skip
    label = f"{backbone}: {trial.name}"
    if not ratios:
        columns["reason"] = trial.over if trial.over != "done" else "no step of gradient descent"
        return Figure(f"{label}: not timed, {columns['reason']}", None, "steps", columns=columns)
    # Phases differ: a schedule costs what its steps cost on average, anything else what a typical step costs.
    value = sum(ratios) / len(ratios) if trial.phased else quantile(ratios, 0.5)
    kept = {what: (size - plain.extra[what]) / 2**20 for what, size in trial.extra.items()}
    kept = {what: round(mib, 1) for what, mib in kept.items() if mib >= 0.05}
    columns |= {"kept_mib": kept, "peak_of_first_step_mib": round(trial.peak / 2**20, 1)}
    said = "" if prediction is None else f"predicted {expected:.2f}, {prediction.because}; "
    told = ", ".join(f"{what} {mib}" for what, mib in kept.items()) or "nothing"
    return Figure(
        f"{label} ({said}MiB kept: {told}; peak {(trial.peak - plain.peak) / 2**20:+.0f})", value, "steps",
        columns=columns,
    )  # fmt: skip


def _penalty(backbone: str, sums: Sums, word_s: float, step_s: float) -> Iterator[Figure]:
    """L2-SP on its own, against the memory traffic that bounds it; `word_s` moves one word of every weight."""
    weights: list[Tensor] = [torch.randn(shape, requires_grad=True) for shape in sums.kernels]
    start = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)  # as in a step: the task's gradient is there, the penalty's is added
    took = []
    for _ in range(9):
        began = time.process_time()
        (0.01 * half_squared_distance(weights, start)).backward()
        took.append(time.process_time() - began)
    took_s = quantile(took[1:], 0.5)
    label = f"{backbone}: l2_sp"
    yield Figure(f"{label}, share of a step's operations", sums.penalty_share, "share", ("<=", 0.01))
    for words, whose in ((WORDS_NEEDED, "any way of doing it"), (WORDS_MOVED, "its own passes")):
        told = f"{label} alone, traffic of {whose} ({words} words a weight) at the bandwidth of a copy"
        yield Figure(told, 1e3 * words * word_s, "ms")
    yield Figure(f"{label} alone, measured", 1e3 * took_s, "ms")
    yield Figure(f"{label} alone, measured / traffic of its own passes", took_s / WORDS_MOVED / word_s, "ratio")
    yield Figure(f"{label} alone, share of a step's time", took_s / step_s, "share")
