"""What a job will take, and whether it can be done at all: from what its probe has measured, before it costs much."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from domain import estimate
from domain.catalogue import catalogue
from domain.default_space import anchors, at_defaults, fit_to_time
from domain.errors import GraftError
from domain.estimate import Rehearsed
from domain.job import JobSpec
from domain.rungs import ETA, GRID, RUNGS
from domain.screening import screened
from domain.space import Choice
from domain.teaching import TEACHER, fixed_trials, teacher_in_time
from search.registry import load
from search.rungs import Rungs
from worker.standing import MOST_KEPT, is_plain

CHECKED = 256  # items on which an export is checked, or all of val


class Counts(NamedTuple):
    """Items of each split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Machine:
    """What there is to work with."""

    facts: Mapping[str, Any]  # of the trial process
    n_workers: int
    free_bytes: int  # on the worker's disk, for jobs

    @property
    def memory_bytes(self) -> int:
        return int(self.facts["memory_bytes"])


@dataclass(frozen=True)
class Forecast:
    spec: JobSpec  # as it fits into time and memory
    estimate: dict[str, Any]
    notes: tuple[str, ...] = ()  # what was narrowed, and why


def forecast(
    spec: JobSpec, names: Sequence[str], found: Mapping[str, Any], counts: Counts, machine: Machine
) -> Forecast:
    """`found` is what the probe says of the trials called `names`. GraftError if the job cannot be done with what there
    is: not enough time for one result, not enough disk."""
    notes: list[str] = []
    spec = _with_larger_batches(spec, found, machine, notes)
    spec, finish_s = _with_finish(spec, found, counts, notes)
    sources, _ = _costs(spec, names, found, counts)
    spec, screening = screened(spec, {**found, "sources": sources})
    notes += screening
    fitted = fit_to_time(spec, _mean(_searched(spec, sources)), finish_s)
    if fitted != spec:
        notes.append(f"steps narrowed to about {_steps(fitted)} a trial: at the probed speed the time buys no more")
    sources, teacher = _costs(fitted, names, found, counts)
    spec = teacher_in_time(fitted, teacher["s_per_trial"] if teacher else 0.0)
    n_parallel = spec.parallel or machine.n_workers
    s_per_trial = _mean(_searched(spec, sources))
    first = next(n for n, source in enumerate(sources) if source["source"] == spec.sources[0].ref)
    told: dict[str, Any] = {
        "s_per_trial": s_per_trial, "first_value_s": estimate.first_value_s(s_per_trial, _n_fits(spec)),
        "linear_probe_s": estimate.linear_probe_s(found["s_per_item"][first], counts.train + counts.val),
        "finish_s": finish_s, "job_s": estimate.job_s(spec.budget, s_per_trial, finish_s, n_parallel),
        "memory_bytes": max(trial["peak_bytes"] for trial in found["trials"]),
        "disk_bytes": _disk_bytes(spec, found, counts, s_per_trial, n_parallel), "disk_free_bytes": machine.free_bytes,
        "device": machine.facts["device"], "device_name": machine.facts["device_name"],
        "precision": machine.facts["precision"], "sources": sources,
    }  # fmt: skip
    if teacher is not None:
        told["teacher"] = teacher
    told |= {name: found[name] for name in ("ranking", "ranked_by", "ranks_first", "meta") if name in found}
    if screening:
        told["screening"] = screening
    _check_time(spec, told)
    check_disk(told["disk_bytes"], machine)
    return Forecast(spec, told, tuple(notes))


def fits(found: Mapping[str, Any], machine: Machine) -> bool:
    """Whether what the probe tried has kept within the memory that this worker may use."""
    return all(trial["peak_bytes"] <= machine.memory_bytes for trial in found["trials"])


def smaller_batches(spec: JobSpec, machine: Machine) -> JobSpec:
    """The job without its default batch size and all larger ones; GraftError if none is left."""
    tried = _batch_size(spec)
    left = tuple(size for size in estimate.batch_sizes(spec) if size < tried)
    if not left:
        where = f"{machine.memory_bytes / 1e9:.1f} GB of memory on {machine.facts['device']}"
        detail = (
            f"a step with data.batch_size {tried} needs more than the {where}: give a smaller data.batch_size, a "
            "smaller data.resolution or a smaller source"
        )
        raise GraftError("out_of_memory", detail)
    return estimate.with_batch_sizes(spec, left)


def _with_larger_batches(spec: JobSpec, found: Mapping[str, Any], machine: Machine, notes: list[str]) -> JobSpec:
    """The job without the batch sizes above the one that was tried that will not fit."""
    asked, tried = estimate.batch_sizes(spec), _batch_size(spec)
    fitting = set(asked)
    for trial in found["trials"]:
        base, peak = trial["base_bytes"], trial["peak_bytes"]
        fitting &= set(estimate.fitting(asked, measured_at=tried, base=base, peak=peak, limit=machine.memory_bytes))
    kept = tuple(size for size in asked if size <= tried or size in fitting)
    if kept == asked:
        return spec
    gone = ", ".join(str(size) for size in asked if size not in kept)
    notes.append(f"data.batch_size {gone} left out: it would not fit into the memory of this worker")
    return estimate.with_batch_sizes(spec, kept)


def _with_finish(
    spec: JobSpec, found: Mapping[str, Any], counts: Counts, notes: list[str]
) -> tuple[JobSpec, float]:  # fmt: skip
    """Seconds that are kept for the finish; without soups and ensembles where these would take too much of the time."""
    if "export_s" not in found:  # nothing is reserved where no time is set
        return spec, 0.0
    rehearsed = Rehearsed(max(found["s_per_item"]), found["s_per_item_exported"], found["export_s"])
    outside = counts.train + counts.val
    checked = min(max(CHECKED, counts.val), outside)
    n_networks = 1 + len(anchors(spec) if spec.anchors else ())
    plain_s = estimate.finish_s(rehearsed, n_test=counts.test, n_checked=checked, n_networks=n_networks)
    if not spec.combine:
        return spec, plain_s
    with_s = plain_s + estimate.combining_s(rehearsed, n_val=counts.val, n_test=counts.test, n_members=spec.n_members)
    if spec.budget.wall_s is None or with_s - plain_s <= estimate.COMBINED_SHARE * spec.budget.wall_s:
        return spec, with_s
    notes.append("no soups and ensembles: in the time given, more trials are worth more than making them")
    return spec.model_copy(update={"combine": False}), plain_s


def _costs(
    spec: JobSpec, names: Sequence[str], found: Mapping[str, Any], counts: Counts
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:  # fmt: skip
    """What a trial of each source takes, and the one that makes the teacher."""
    n_val = counts.val if spec.n_folds == 1 else (counts.train + counts.val) // spec.n_folds
    sources: list[dict[str, Any]] = []
    teacher = None
    for name, trial, s_per_item in zip(names, found["trials"], found["s_per_item"], strict=True):
        steps = _steps(spec) if name != TEACHER or spec.teacher is None else int(spec.teacher.values["steps"])
        seconds = estimate.trial_s(
            trial["s_per_step"], steps, trial["prepare_s"], s_per_item, n_val=n_val, n_fits=_n_fits(spec)
        )
        told = {**trial, "s_per_trial": seconds}
        if name == TEACHER:
            teacher = told
        else:
            sources.append(told)
    return sources, teacher


def _disk_bytes(
    spec: JobSpec, found: Mapping[str, Any], counts: Counts, s_per_trial: float, n_parallel: int
) -> int:  # fmt: skip
    n_kept = spec.keep_top + len(fixed_trials(spec, catalogue())) + (0 if is_plain(spec) else MOST_KEPT)
    n_kept += spec.confirm.top * (spec.confirm.seeds + 1) if spec.confirm is not None else 0
    n_resting = estimate.n_resting(spec.budget, s_per_trial, n_parallel) if _has_rungs(spec) else 0
    blobs = estimate.blob_bytes(
        max(found["weights_bytes"]), n_kept=n_kept, n_parallel=n_parallel, n_resting=n_resting
    )  # fmt: skip
    return blobs + estimate.packs_bytes(spec, catalogue(), sum(counts))


def _has_rungs(spec: JobSpec) -> bool:
    """Whether trials may rest: several objectives stop nothing."""
    return len(spec.objectives) == 1 and isinstance(load("pruners", spec.pruner).build(), Rungs)


def _check_time(spec: JobSpec, told: Mapping[str, Any]) -> None:
    """Time for one result and its bundle, at the very least."""
    wall_s = spec.budget.wall_s
    if wall_s is None:
        return
    cheap = spec.anchors and spec.sources[0].kind != "scratch"
    first_s, what = (told["linear_probe_s"], "the linear probe") if cheap else (told["s_per_trial"], "one trial")
    if not cheap and _has_rungs(spec):  # the first to go beyond its first rung waits there for company
        first_s *= 1 + (ETA - 1) * RUNGS[0] / GRID
    least_s = first_s + told["finish_s"] / estimate.MARGIN
    if wall_s < least_s:
        detail = (
            f"{wall_s:.0f} s are too short: on this worker {what} takes about {first_s:.0f} s and finishing about "
            f"{told['finish_s']:.0f} s; give at least {math.ceil(first_s + told['finish_s'])} s"
        )
        raise GraftError("budget_too_small", detail)


def check_disk(needed_bytes: int, machine: Machine) -> None:
    if needed_bytes > machine.free_bytes:
        detail = (
            f"the job needs about {needed_bytes / 1e9:.1f} GB of disk for pixels, checkpoints and bundle, and "
            f"{machine.free_bytes / 1e9:.1f} GB are free on this worker: free some, narrow data.resolution, "
            "or take a pruner that lets no trial rest, such as median"
        )
        raise GraftError("disk_full", detail)


def _mean(sources: Sequence[Mapping[str, Any]]) -> float:
    return float(sum(source["s_per_trial"] for source in sources) / len(sources))


def _searched(spec: JobSpec, sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The costs of the sources that trials may start from."""
    options = next((d.range for d in spec.space.dimensions if d.path == "source"), None)
    return [s for s in sources if not isinstance(options, Choice) or s["source"] in options.options]


def _n_fits(spec: JobSpec) -> int:
    return spec.n_folds + (spec.n_folds > 1)


def _steps(spec: JobSpec) -> int:
    return int(at_defaults(spec, spec.sources[0].ref)["steps"])


def _batch_size(spec: JobSpec) -> int:
    return int(at_defaults(spec, spec.sources[0].ref)["data.batch_size"])
