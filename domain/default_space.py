"""The search space of a job, its anchors, and the recipe its probe runs: what is tried when nobody says otherwise.

Ranges come from the catalogue: a part's own, and the task's for everything that is no part's. This file narrows them to
what pays for a few hundred to a few thousand items, and to what the job's sources allow; the preset says which of them
are searched at all. A dimension is active only where it means something: docs/decisions/0008-default-space.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from domain.catalogue import BackboneFacts, Catalogue
from domain.errors import Invalid
from domain.job import Fidelity, JobSpec, ResolvedSource, Values
from domain.presets import PRESETS, Preset
from domain.recipe import SLOTS, can_stand_beside
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Range, Space, Value

LEARNING_RATES = {"sgd": FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2),
                  "adamw": FloatRange(low=1e-5, high=3e-3, log=True, default=1e-3),
                  "scratch": FloatRange(low=1e-3, high=1.0, log=True, default=3e-2)}  # fmt: skip
# What means something for weights that come from somewhere: from scratch there is one rate, nothing worth freezing, and
# batch norm has to train, as it does where a recipe says nothing of it.
OF_TRANSFER = ("optimizer.inner_ratio", "batch_norm", "schedule.freeze.depth")
# Params of parts that stay at their default unless a job says otherwise.
NOT_SEARCHED = {"scope"}
# Steps of a fine-tuning (Kolesnikov et al. 2020, BiT-HyperRule): by number of training items, searched around it.
STEPS = ((20_000, 500), (500_000, 10_000), (1 << 62, 20_000))
TRIALS_IN_TIME = 3  # default trials that a budget of time should pay for
MIN_STEPS = 10


def job_space(
    task: str, sources: Sequence[ResolvedSource], catalogue: Catalogue, *, n_train: int, has_teacher: bool,
    has_source_data: bool = False, overrides: dict[str, Any] | None = None, preset: str = "balanced",
) -> Space:  # fmt: skip
    """The space of a job over `sources`, with the job's own values and ranges in place.

    An override may fix any dimension, search it in a narrower or wider range inside the legal one, open a fixed one, or
    name another part for a slot, whose params then join the space.
    """
    overrides, chosen = dict(overrides or {}), PRESETS[preset]
    backbones = [catalogue.backbone(s.backbone) for s in sources]
    refs = tuple(s.ref for s in sources)
    transferred = tuple(s.ref for s in sources if s.kind != "scratch")
    have = {"teacher"} if has_teacher else set()
    have |= {"source_data"} if has_source_data else set()
    have |= {"start", "source_head"} if transferred else set()

    named = {slot: _named(slot, overrides[slot], catalogue) for slot in SLOTS if slot in overrides}
    usual = {slot: _usual_parts(slot, catalogue, have, chosen) for slot in SLOTS}
    names = {slot: named[slot] if slot in named else _beside(named, slot, usual[slot], catalogue) for slot in SLOTS}
    space = Space(dimensions=(Dimension(path="source", range=Choice(options=refs, default=refs[0])),))
    for slot in SLOTS:
        found = _slot_dimensions(slot, names[slot], catalogue, backbones, have)
        space = _joined(space, [_of_transfer(d, refs, transferred) for d in found])

    optimizers = _optimizers(overrides)
    ranges = _task_ranges(task, catalogue, backbones, n_train, chosen, optimizers if transferred else ["scratch"])
    ranges |= {path: Choice(options=legal, default=legal[0]) for path, legal in _demands(named, catalogue).items()}
    for path, range_ in ranges.items():
        when = _when(path, names["schedule"], optimizers, catalogue)
        if path not in overrides and (when is None or path not in chosen.searched):
            range_, when = Choice(options=(range_.default,), default=range_.default), ()
        dimension = Dimension(path=path, range=range_, when=when or ())
        space = _joined(space, [_of_transfer(dimension, refs, transferred)])
    _check_known(space, overrides, catalogue)
    return _settle(space.changed(overrides, _legal_ranges(task, catalogue, backbones)))


def _joined(space: Space, more: Iterable[Dimension | None]) -> Space:
    return space.model_copy(update={"dimensions": (*space.dimensions, *(d for d in more if d is not None))})


def _of_transfer(dimension: Dimension, refs: Sequence[str], transferred: Sequence[str]) -> Dimension | None:
    """The dimension for the sources that it means something for; None if it does for none of them."""
    if dimension.path not in OF_TRANSFER or len(transferred) == len(refs):
        return dimension
    condition = Condition(path="source", values=tuple(transferred))
    return dimension.model_copy(update={"when": (condition, *dimension.when)}) if transferred else None


def _optimizers(overrides: dict[str, Any]) -> list[str]:
    wanted = overrides.get("optimizer.name", "sgd")
    found = [name for name in (wanted if isinstance(wanted, list) else [wanted]) if isinstance(name, str)]
    return found or ["sgd"]


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


def fit_to_time(spec: JobSpec, s_per_trial: float, finish_s: float = 0.0) -> JobSpec:
    """The job with fewer steps per trial, if one default trial (`s_per_trial`, as probed) would eat up its time.

    What a search is compared with must be worth comparing: a default trial may cost a third of the time for training,
    which is `device_s`, or `wall_s` without what finishing takes. Steps that the job chose itself stay.
    """
    wall_s = spec.budget.wall_s
    bounds = (None if wall_s is None else max(0.0, wall_s - finish_s), spec.budget.device_s)
    time_s = min((bound for bound in bounds if bound is not None), default=None)
    steps = next((d for d in spec.space.dimensions if d.path == "steps"), None)
    if time_s is None or steps is None or not isinstance(steps.range, IntRange) or "steps" in spec.chosen:
        return spec
    share = time_s / TRIALS_IN_TIME / max(s_per_trial, 1e-9)
    if share >= 1:
        return spec
    default = max(MIN_STEPS, round(steps.range.default * share))
    low = max(MIN_STEPS // 2, round(steps.range.low * share))
    high = max(default + 1, round(steps.range.high * share))
    fewer = steps.model_copy(update={"range": IntRange(low=low, high=high, log=True, default=default)})
    dimensions = tuple(fewer if d.path == "steps" else d for d in spec.space.dimensions)
    return spec.model_copy(update={"space": spec.space.model_copy(update={"dimensions": dimensions})})


def low_resolution(spec: JobSpec, catalogue: Catalogue) -> Fidelity | None:
    """Trials at the lowest usual resolution first; None where the job searches none above that."""
    backbones = [catalogue.backbone(source.backbone) for source in spec.sources]
    low = min(map(float, _resolutions(backbones, 1.0).options))
    range_ = next((d.range for d in spec.space.dimensions if d.path == "data.resolution"), None)
    sides = range_.options if isinstance(range_, Choice) else (spec.space.fixed["data.resolution"],)
    return Fidelity(dimension="resolution", low=low) if low < min(map(float, sides)) else None


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
    task: str, catalogue: Catalogue, backbones: list[BackboneFacts], n_train: int, chosen: Preset,
    optimizers: Sequence[str],
) -> dict[str, Range]:  # fmt: skip
    """The task's ranges, narrowed to what is worth searching at this size. `optimizers` are those of the job, or
    `scratch` where nothing is transferred."""
    ranges = dict(catalogue.task(task).space)
    rates = [LEARNING_RATES[name] for name in optimizers if name in LEARNING_RATES] or [LEARNING_RATES["sgd"]]
    low, high = min(r.low for r in rates), max(r.high for r in rates)
    ranges["optimizer.lr_head"] = FloatRange(low=low, high=high, log=True, default=rates[0].default)
    rule = steps_rule(n_train) * (2 if "scratch" in optimizers else 1) * chosen.usual_steps
    around = chosen.around_steps
    ranges["steps"] = IntRange(low=round(rule / around), high=round(rule * around), log=True, default=round(rule))
    ranges["data.resolution"] = _resolutions(backbones, chosen.resolution)
    sizes = ranges["data.batch_size"]
    if isinstance(sizes, Choice):
        fitting = tuple(o for o in sizes.options if isinstance(o, int) and o <= max(n_train, 16)) or sizes.options[:1]
        default = max((o for o in fitting if o <= sizes.default), default=fitting[0])  # type: ignore[operator]
        ranges["data.batch_size"] = Choice(options=fitting, default=default)
    if not any("batch_norm" in b.provides for b in backbones):
        ranges["batch_norm"] = Choice(options=("train",), default="train")
    return ranges


def _legal_ranges(task: str, catalogue: Catalogue, backbones: list[BackboneFacts]) -> dict[str, Range]:
    """How far a job may go in each dimension."""
    facts = catalogue.task(task)
    sides = [s for s in backbones[0].legal_resolutions if all(s in b.legal_resolutions for b in backbones)]
    legal = {**facts.space, **facts.legal, "data.resolution": Choice(options=tuple(sides), default=sides[0])}
    for part in catalogue.parts:
        ranges = _part_ranges(part.slot, part.name, catalogue, backbones)
        legal |= {f"{part.slot}.{part.name}.{param}": range_ for param, range_ in ranges.items()}
    return legal


def _check_known(space: Space, overrides: dict[str, Any], catalogue: Catalogue) -> None:
    """Invalid for a param of a part that is not searched: what is missing is the part."""
    parts = {f"{p.slot}.{p.name}": p for p in catalogue.parts}
    for path in sorted(set(overrides) - set(space.paths)):
        slot, _, rest = path.partition(".")
        part = parts.get(f"{slot}.{rest.partition('.')[0]}")
        if part is not None and rest.partition(".")[2] in part.space:
            detail = f"{path} belongs to a part that this job does not search; name that too, as in {slot}={part.name}"
            raise Invalid("part_not_searched", detail, path=path)


def _when(
    path: str, schedules: list[str], optimizers: list[str], catalogue: Catalogue
) -> tuple[Condition, ...] | None:  # fmt: skip
    """When a setting means something: beside the schedules that heed it, momentum for SGD alone; None if never."""

    def heeds(name: str) -> bool:
        ignored = () if name == "none" else catalogue.part("schedule", name).ignores
        return not any(path == place or path.startswith(f"{place}.") for place in ignored)

    heeding = tuple(name for name in schedules if heeds(name))
    momentum = path == "optimizer.momentum" and optimizers != ["sgd"]
    if not heeding or (momentum and "sgd" not in optimizers):
        return None
    when = () if len(heeding) == len(schedules) else (Condition(path="schedule", values=heeding),)
    return (*when, Condition(path="optimizer.name", values=("sgd",))) if momentum else when


def _resolutions(backbones: list[BackboneFacts], share: float) -> Choice:
    """Resolutions that every backbone takes; by default the largest within a share of the first backbone's own."""
    common = [r for r in backbones[0].resolutions if all(r in b.resolutions for b in backbones)]
    if not common:
        names = ", ".join(b.name for b in backbones)
        raise Invalid("no_common_resolution", f"{names} share no resolution; submit them as jobs of their own")
    native = backbones[0].preprocessing.crop
    default = max((r for r in common if r <= share * native), default=min(common))
    return Choice(options=tuple(common), default=default)


def _slot_dimensions(
    slot: str, names: list[str], catalogue: Catalogue, backbones: list[BackboneFacts], have: set[str]
) -> list[Dimension]:
    """The choice of the part, and each part's params while it is chosen."""
    if not names:
        return []
    # Where all else is equal, a schedule that heeds the settings: they are what a default trial is measured by.
    heeding = min(names, key=lambda n: 0 if n == "none" else len(catalogue.part(slot, n).ignores))
    preferred = next((n for n in ("l2_sp", "l2", "freeze", "none") if n in names), heeding)
    found = [Dimension(path=slot, range=Choice(options=tuple(names), default=preferred))]
    for name in names:
        chosen = (Condition(path=slot, values=(name,)),)
        for param, range_ in _part_ranges(slot, name, catalogue, backbones).items():
            path = f"{slot}.{name}.{param}"
            range_ = _affordable(slot, name, param, range_, catalogue, have)
            if param in NOT_SEARCHED:
                range_ = Choice(options=(range_.default,), default=range_.default)
            found.append(Dimension(path=path, range=range_, when=chosen))
    return found


def _usual_parts(slot: str, catalogue: Catalogue, have: set[str], chosen: Preset) -> list[str]:
    """The parts of a slot that are searched unasked; "none" where leaving the slot empty is worth a trial."""
    more = chosen.parts.get(slot, ())
    parts = [p for p in catalogue.parts if p.slot == slot and (p.searched or p.name in more) and set(p.needs) <= have]
    names = [p.name for p in parts]
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
    if not names or not all(isinstance(name, str) for name in names):
        raise Invalid("bad_dimension", f"{slot}: give the name of a part, or a list of names", path=slot)
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
