"""The search space of a job, its anchors, and the recipe its probe runs: what is tried when nobody says otherwise.

Ranges come from the catalogue: a part's own, and the task's for everything that is no part's. This file narrows them to
what pays for a few hundred to a few thousand items, and to what the job's sources allow.
"""

from collections.abc import Sequence
from typing import Any

from domain.catalogue import BackboneFacts, Catalogue
from domain.errors import Invalid
from domain.job import JobSpec, ResolvedSource, Values
from domain.recipe import SLOTS, can_stand_beside
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Range, Space, Value

# Fixed unless a job says otherwise: one value each, the rest of the range is legal.
FIXED: Values = {
    "optimizer.name": "sgd", "optimizer.stage_decay": 1.0, "optimizer.grad_clip": 1.0, "optimizer.warmup_frac": 0.05,
}  # fmt: skip
LEARNING_RATES = {"sgd": FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2),
                  "adamw": FloatRange(low=1e-5, high=3e-3, log=True, default=1e-3)}  # fmt: skip
FROM_SCRATCH = FloatRange(low=1e-3, high=1.0, log=True, default=3e-2)
# Params of parts that stay at their default unless a job says otherwise.
NOT_SEARCHED = {"scope"}
# Steps of a fine-tuning (Kolesnikov et al. 2020, BiT-HyperRule): by number of training items, searched around it.
STEPS = ((20_000, 500), (500_000, 10_000), (1 << 62, 20_000))
AROUND = 4
TRIALS_IN_TIME = 8  # default trials that a budget of time should pay for
MIN_STEPS = 10


def job_space(
    task: str, sources: Sequence[ResolvedSource], catalogue: Catalogue, *, n_train: int, has_teacher: bool,
    has_source_data: bool = False, overrides: dict[str, Any] | None = None,
) -> Space:  # fmt: skip
    """The space of a job over `sources`, with the job's own values and ranges in place.

    An override may fix any dimension, narrow a searched one, open a fixed one within the task's range, or name another
    part for a slot, whose params then join the space.
    """
    overrides = dict(overrides or {})
    backbones = [catalogue.backbone(s.backbone) for s in sources]
    transferred = tuple(s.ref for s in sources if s.kind != "scratch")
    dimensions: list[Dimension] = []
    fixed: Values = {}

    def put(path: str, range_: Range, *when: Condition) -> None:
        dimensions.append(Dimension(path=path, range=range_, when=when))

    have = {"teacher"} if has_teacher else set()
    have |= {"source_data"} if has_source_data else set()
    have |= {"start", "source_head"} if transferred else set()
    named = {slot: _named(slot, overrides[slot], catalogue) for slot in SLOTS if slot in overrides}
    demanded = _demands(named, catalogue)
    refs = tuple(s.ref for s in sources)
    put("source", Choice(options=refs, default=refs[0]))
    on_transfer = () if len(transferred) == len(refs) else (Condition(path="source", values=transferred),)
    for path, range_ in _task_ranges(task, catalogue, backbones, n_train, bool(transferred), overrides).items():
        if path in demanded and path not in overrides:
            range_ = Choice(options=demanded[path], default=demanded[path][0])
        if path == "optimizer.inner_ratio":
            if transferred:
                put(path, range_, *on_transfer)
        elif path in FIXED and path not in overrides:
            fixed[path] = FIXED[path]
        else:
            put(path, range_)
    for slot in SLOTS:
        names = named[slot] if slot in named else _beside(named, slot, _default_parts(slot, catalogue, have), catalogue)
        dimensions += _slot_dimensions(slot, names, catalogue, backbones, set(overrides), have)
    space = Space(dimensions=tuple(dimensions), fixed=fixed)
    return _settle(space.narrow(overrides))


def anchors(spec: JobSpec) -> list[tuple[str, Values]]:
    """The fixed recipes that every job runs first, cheapest first, on its first source.

    What the job has fixed holds for them too; a slot that it fixes to something else takes the anchor with it.
    """
    source = spec.sources[0]
    base = at_defaults(spec, source.ref)
    if source.kind == "scratch":
        return [("scratch", _filled(base, regularizer="l2", schedule="freeze"))]
    plain = {"distillation": "none", "feature": "none", "surgery": "none", "sampling": "none", "averaging": "none"}
    wanted: list[tuple[str, dict[str, Value]]] = [
        ("linear_probe", {**plain, "schedule": "linear_probe", "regularizer": "none"}),
        ("fine_tuning", {**plain, "schedule": "freeze", "regularizer": "l2"}),
        ("l2_sp", {**plain, "schedule": "freeze", "regularizer": "l2_sp"}),
    ]
    found = [(name, _filled(base, **slots)) for name, slots in wanted]
    found[0][1]["head.kind"] = "linear"  # the closed form knows no other head
    return found


def at_defaults(spec: JobSpec, ref: str) -> Values:
    """Every searched value at its default, for one source of the job."""
    values: Values = dict(spec.space.fixed)
    for dimension in spec.space.dimensions:
        if dimension.path == "source":
            values["source"] = ref
        elif dimension.active(values):
            values[dimension.path] = dimension.range.default
    values["source"] = ref
    return values


def fit_to_time(spec: JobSpec, s_per_trial: float) -> JobSpec:
    """The job with fewer steps per trial, if one default trial (`s_per_trial`, as probed) would eat up its time.

    A search is worth its name from a handful of trials on: a default trial may cost an eighth of `wall_s`. Steps that
    the job chose itself stay.
    """
    wall_s = spec.budget.wall_s
    steps = next((d for d in spec.space.dimensions if d.path == "steps"), None)
    if wall_s is None or steps is None or not isinstance(steps.range, IntRange) or "steps" in spec.chosen:
        return spec
    share = wall_s / TRIALS_IN_TIME / max(s_per_trial, 1e-9)
    if share >= 1:
        return spec
    default = max(MIN_STEPS, round(steps.range.default * share))
    low = max(MIN_STEPS // 2, round(steps.range.low * share))
    high = max(default + 1, round(steps.range.high * share))
    fewer = steps.model_copy(update={"range": IntRange(low=low, high=high, log=True, default=default)})
    dimensions = tuple(fewer if d.path == "steps" else d for d in spec.space.dimensions)
    return spec.model_copy(update={"space": spec.space.model_copy(update={"dimensions": dimensions})})


def steps_rule(n_train: int) -> int:
    return next(steps for limit, steps in STEPS if n_train < limit)


def _filled(base: Values, **slots: Value) -> Values:
    """`base` with these slots filled instead; params of a part that goes go with it."""
    values = {p: v for p, v in base.items() if p.partition(".")[0] not in slots}
    for slot, name in slots.items():
        if name == "none":
            continue
        values[slot] = name
        values |= {p: v for p, v in base.items() if p.startswith(f"{slot}.{name}.")}
    return values


def _task_ranges(
    task: str, catalogue: Catalogue, backbones: list[BackboneFacts], n_train: int, transferred: bool,
    overrides: dict[str, Any],
) -> dict[str, Range]:  # fmt: skip
    """The task's ranges, narrowed to what is worth searching at this size."""
    ranges = dict(catalogue.task(task).space)
    optimizer = overrides.get("optimizer.name", FIXED["optimizer.name"])
    learning_rate = LEARNING_RATES.get(str(optimizer), LEARNING_RATES["sgd"]) if transferred else FROM_SCRATCH
    if "optimizer.lr_head" not in overrides:  # a job's own range is checked against the task's whole range
        ranges["optimizer.lr_head"] = learning_rate
    rule = steps_rule(n_train) * (1 if transferred else 2)
    if "steps" not in overrides:
        ranges["steps"] = IntRange(low=rule // AROUND, high=rule * AROUND, log=True, default=rule)
    ranges["data.resolution"] = _resolutions(backbones)
    sizes = ranges["data.batch_size"]
    if isinstance(sizes, Choice):
        fitting = tuple(o for o in sizes.options if isinstance(o, int) and o <= max(n_train, 16)) or sizes.options[:1]
        default = max((o for o in fitting if o <= sizes.default), default=fitting[0])  # type: ignore[operator]
        ranges["data.batch_size"] = Choice(options=fitting, default=default)
    if not any("batch_norm" in b.provides for b in backbones) or not transferred:
        ranges["batch_norm"] = Choice(options=("train",), default="train")
    return ranges


def _resolutions(backbones: list[BackboneFacts]) -> Choice:
    """Resolutions that every backbone takes; the first backbone's own by default."""
    common = [r for r in backbones[0].resolutions if all(r in b.resolutions for b in backbones)]
    if not common:
        names = ", ".join(b.name for b in backbones)
        raise Invalid("no_common_resolution", f"{names} share no resolution; submit them as jobs of their own")
    native = backbones[0].preprocessing.crop
    return Choice(options=tuple(common), default=native if native in common else common[-1])


def _slot_dimensions(
    slot: str, names: list[str], catalogue: Catalogue, backbones: list[BackboneFacts], opened: set[str],
    have: set[str],
) -> list[Dimension]:  # fmt: skip
    """The choice of the part, and each part's params while it is chosen."""
    if not names:
        return []
    preferred = next((n for n in ("l2_sp", "l2", "freeze", "none") if n in names), names[0])
    found = [Dimension(path=slot, range=Choice(options=tuple(names), default=preferred))]
    for name in names:
        chosen = (Condition(path=slot, values=(name,)),)
        for param, range_ in _part_ranges(slot, name, catalogue, backbones).items():
            path = f"{slot}.{name}.{param}"
            range_ = _affordable(slot, name, param, range_, catalogue, have)
            if param in NOT_SEARCHED and path not in opened:
                range_ = Choice(options=(range_.default,), default=range_.default)
            found.append(Dimension(path=path, range=range_, when=chosen))
    return found


def _default_parts(slot: str, catalogue: Catalogue, have: set[str]) -> list[str]:
    """The parts of a slot that are searched unasked; "none" where leaving the slot empty is worth a trial."""
    names = [p.name for p in catalogue.parts if p.slot == slot and p.searched and set(p.needs) <= have]
    return ["none", *names] if names and slot not in ("schedule", "regularizer") else names


def _beside(named: dict[str, list[str]], slot: str, names: list[str], catalogue: Catalogue) -> list[str]:
    """Of `names`, those that can stand beside what the job has named for other slots; "none" where it may need that."""
    chosen = [catalogue.part(s, n) for s, wanted in named.items() for n in wanted if n != "none"]
    certain = [p for p in chosen if len(named[p.slot]) == 1]
    facts = {name: catalogue.part(slot, name) for name in names if name != "none"}
    kept = [name for name in names if name == "none" or all(can_stand_beside(facts[name], p) for p in certain)]
    in_the_way = any(not can_stand_beside(facts[name], p) for name in kept if name != "none" for p in chosen)
    emptied = bool(names) and not kept
    return ["none", *kept] if emptied or (in_the_way and "none" not in kept) else kept


def _demands(named: dict[str, list[str]], catalogue: Catalogue) -> dict[str, tuple[Value, ...]]:
    """What the parts that are certain to stand in every recipe ask of the rest of it."""
    certain = [catalogue.part(slot, *names) for slot, names in named.items() if len(names) == 1 and names != ["none"]]
    return {path: values for part in certain for path, values in part.demands.items()}


def _affordable(slot: str, name: str, param: str, range_: Range, catalogue: Catalogue, have: set[str]) -> Range:
    """The range without the options that need what the job does not offer."""
    table = catalogue.part(slot, name).needs_by.get(param)
    if table is None or not isinstance(range_, Choice):
        return range_
    offered = tuple(o for o in range_.options if str(o) not in table or table[str(o)] in have) or range_.options
    # A source dataset is named to be used.
    default = next((o for o in offered if table.get(str(o)) == "source_data" and "source_data" in have), range_.default)
    return Choice(options=offered, default=default if default in offered else offered[0])


def _named(slot: str, wanted: Any, catalogue: Catalogue) -> list[str]:
    names = wanted if isinstance(wanted, list) else [wanted]
    for name in names:
        if name != "none":
            catalogue.part(slot, str(name))  # an unknown part is refused with the legal list
    return [str(name) for name in names]


def _part_ranges(slot: str, name: str, catalogue: Catalogue, backbones: list[BackboneFacts]) -> dict[str, Range]:
    if name == "none":
        return {}
    ranges = dict(catalogue.part(slot, name).space)
    if (slot, name) == ("schedule", "freeze"):  # no deeper than the shallowest backbone has stages
        ranges["depth"] = IntRange(low=0, high=min(len(b.stages) for b in backbones), default=0)
    return ranges


def _settle(space: Space) -> Space:
    """Dimensions with one unconditional value are fixed: nothing is left to search there."""
    fixed = dict(space.fixed)
    kept = []
    for dimension in space.dimensions:
        only = (
            dimension.range.options[0]
            if isinstance(dimension.range, Choice) and len(dimension.range.options) == 1
            else None
        )
        if only is not None and not dimension.when:
            fixed[dimension.path] = only
        else:
            kept.append(dimension)
    return Space(dimensions=tuple(kept), fixed=fixed)
