"""What a job will take, worked out from what its probe has measured: seconds, memory, disk."""

import math
from typing import NamedTuple

from domain.catalogue import Catalogue
from domain.default_space import at_defaults
from domain.job import Budget, JobSpec
from domain.rungs import RUNGS
from domain.space import Choice

HAND_OVER_S = 3.0  # from the last step to the finish, and from the bundle on disk to the job's last state
MARGIN = 1.25  # on what was measured with a few items: machines are not equally fast at all times
FEW_EVALUATIONS = 4  # of a fit at least
EVALUATION_SHARE = 0.1  # of a trial's steps that evaluations cost, where they are many
RESTING_PER_TRIAL = 8 / (21 / 9)  # of nine trials, eight rest at 1/9 or 1/3; all nine take the time of 21/9 in full
RESUME_COPIES = 4  # of the weights in a resume point: the network, its best state, momentum, an average
BUNDLE_COPIES = 6  # as safetensors and as ONNX: in the folder, in the zip, and in the blob store
SOUPS = 3  # for each member: on either half of val, and on all of it
COMBINED_SHARE = 0.1  # of a budget of time that soups and ensembles may take of its end


class Rehearsed(NamedTuple):
    """What the finish of a job was made of when the probe rehearsed it with one network."""

    s_per_item: float  # evaluation as on test
    s_per_item_exported: float  # the same in ONNX Runtime
    export_s: float


def trial_s(s_per_step: float, steps: int, prepare_s: float, s_per_item: float, n_val: int, n_fits: int) -> float:
    """Seconds of a trial: every fit prepares, takes its steps and looks at val, and at rungs once more."""
    look_s = n_val * s_per_item
    looks_s = max(FEW_EVALUATIONS * look_s, EVALUATION_SHARE * steps * s_per_step)
    return n_fits * (prepare_s + steps * s_per_step + looks_s) + len(RUNGS) * look_s


def first_value_s(s_per_trial: float, n_fits: int) -> float:
    """Seconds until a trial at its defaults has its first value on val."""
    return s_per_trial / n_fits / FEW_EVALUATIONS


def linear_probe_s(s_per_item: float, n_items: int) -> float:
    """Seconds of the cached linear probe: one look at every item outside test; solving the head costs little beside."""
    return n_items * s_per_item


def finish_s(found: Rehearsed, *, n_test: int, n_checked: int, n_networks: int) -> float:
    """Seconds from the last step to the bundle: networks meet test, one is exported and checked on items."""
    looks_s = n_networks * n_test * found.s_per_item
    check_s = n_checked * (found.s_per_item + found.s_per_item_exported)
    return HAND_OVER_S + MARGIN * (looks_s + found.export_s + check_s)


def combining_s(found: Rehearsed, *, n_val: int, n_test: int, n_members: int) -> float:
    """What soups and ensembles of `n_members` add to that: soups look at val, and all members are exported."""
    looks_s = n_members * (SOUPS * n_val + n_test) * found.s_per_item
    return MARGIN * (looks_s + (n_members - 1) * found.export_s)


def job_s(budget: Budget, s_per_trial: float, finish_s: float, n_parallel: int) -> float | None:
    """Wall time of the whole job; None where neither trials nor time bound it."""
    bounds = [] if budget.wall_s is None else [budget.wall_s]
    if budget.trials is not None:
        bounds.append(-(-budget.trials // n_parallel) * s_per_trial + finish_s)
    if budget.device_s is not None:
        bounds.append(budget.device_s / n_parallel + finish_s)
    return min(bounds, default=None)


def n_resting(budget: Budget, s_per_trial: float, n_parallel: int) -> int:
    """Trials that may rest at a rung at the same time: all of the budget, or as many as its time is a guess for
    (successive halving with a factor of 3, the bolder of what pruners do)."""
    bounds = [] if budget.trials is None else [float(budget.trials)]
    seconds = [budget.wall_s * n_parallel] if budget.wall_s is not None else []
    seconds += [budget.device_s] if budget.device_s is not None else []
    if budget.trials is None and seconds and s_per_trial > 0:
        bounds.append(RESTING_PER_TRIAL * min(seconds) / s_per_trial)
    return math.ceil(min(bounds, default=0.0))


def blob_bytes(weights_bytes: int, *, n_kept: int, n_parallel: int, n_resting: int = 0) -> int:
    """Checkpoints of the trials that keep theirs and of those at work, the resume points of these and of those that
    rest at a rung, and the bundle."""
    checkpoints = n_kept + n_parallel
    resume_points = (2 * n_parallel + n_resting) * RESUME_COPIES  # the next one is written before the last one goes
    return weights_bytes * (checkpoints + resume_points + BUNDLE_COPIES)


def batch_sizes(spec: JobSpec) -> tuple[int, ...]:
    """The batch sizes that the job searches or has fixed, the smallest first."""
    dimension = next((d for d in spec.space.dimensions if d.path == "data.batch_size"), None)
    if dimension is None or not isinstance(dimension.range, Choice):
        return (int(at_defaults(spec, spec.sources[0].ref)["data.batch_size"]),)
    return tuple(sorted(int(option) for option in dimension.range.options))


def fitting(sizes: tuple[int, ...], *, measured_at: int, base: int, peak: int, limit: int) -> tuple[int, ...]:
    """The batch sizes that `limit` bytes of memory hold.

    Memory grows in a straight line with the batch, from `base` (libraries, data, weights at rest) over the `peak` of
    the batch that was measured.
    """
    per_item = (peak - base) / measured_at
    return tuple(size for size in sizes if base + per_item * size <= limit)


def with_batch_sizes(spec: JobSpec, sizes: tuple[int, ...]) -> JobSpec:
    """The job with these batch sizes alone, for its own trials and for its teacher's."""
    usual = int(at_defaults(spec, spec.sources[0].ref)["data.batch_size"])
    range_ = Choice(options=sizes, default=max((s for s in sizes if s <= usual), default=sizes[0]))
    space = spec.space.model_copy(update={"dimensions": tuple(
        d.model_copy(update={"range": range_}) if d.path == "data.batch_size" else d for d in spec.space.dimensions
    )})  # fmt: skip
    teacher = spec.teacher
    if teacher is not None and int(teacher.values.get("data.batch_size", 0)) > max(sizes):
        teacher = teacher.model_copy(update={"values": {**teacher.values, "data.batch_size": max(sizes)}})
    return spec.model_copy(update={"space": space, "teacher": teacher})


def packs_bytes(spec: JobSpec, catalogue: Catalogue, n_items: int) -> int:
    """Every pack that the space may ask for: one for each size and filter that a backbone wants its pixels at."""
    dimension = next((d for d in spec.space.dimensions if d.path == "data.resolution"), None)
    options = dimension.range.options if dimension is not None and isinstance(dimension.range, Choice) else ()
    resolutions = [int(o) for o in options] or [int(spec.space.fixed["data.resolution"])]
    wanted = set()
    for source in spec.sources:
        made = catalogue.backbone(source.backbone).preprocessing
        margin = (made.resize - made.crop) / 2 / made.crop
        wanted |= {(r + 2 * round(margin * r), r, made.interpolation) for r in resolutions}
    return sum(n_items * canvas * canvas * 3 for canvas, _, _ in wanted)
