"""Is there anything to train in the space of a job? A part that no source of the job can take is refused with its
reasons if the request named it, and left out of the search if not."""

from collections.abc import Collection, Iterator
from itertools import islice, product

from domain.catalogue import Catalogue
from domain.errors import Invalid
from domain.job import JobSpec, Values
from domain.recipe import SLOTS, Refusal, refusals
from domain.space import Choice, Dimension, Space, Value

MAX_COMBINATIONS = 2000


def legal_spec(spec: JobSpec, catalogue: Catalogue, named: Collection[str]) -> JobSpec:
    """`spec` without the parts that cannot be trained; Invalid("recipe_refused") if a part that the request named in
    its space cannot be, or if no recipe of the space can be."""
    dimensions = [_legal_options(spec, d, catalogue, named) if d.path in SLOTS else d for d in spec.space.dimensions]
    kept = tuple(d for d in dimensions if d is not None)
    found = spec.model_copy(update={"space": Space(dimensions=kept, fixed=spec.space.fixed)})
    _check_some_legal(found, catalogue)
    return found


def values_with(spec: JobSpec, ref: str, slots: Values) -> Values:
    """Every value at its default for one source, with these slots filled instead."""
    values: Values = dict(spec.space.fixed) | {"source": ref}
    for dimension in spec.space.dimensions:
        if dimension.path == "source":
            continue
        if dimension.active(values):
            values[dimension.path] = slots.get(dimension.path, dimension.range.default)
    return values


def _legal_options(
    spec: JobSpec, dimension: Dimension, catalogue: Catalogue, named: Collection[str]
) -> Dimension | None:
    range_ = dimension.range
    if not isinstance(range_, Choice):
        return dimension
    lacking: dict[Value, list[Refusal]] = {}
    for option in range_.options:
        found = [_needs(spec, s.ref, {dimension.path: option}, catalogue) for s in spec.sources]
        if all(found):
            lacking[option] = found[0]
    if lacking and (dimension.path in named or len(lacking) == len(range_.options)):
        _refuse([refusal for found in lacking.values() for refusal in found])
    options = tuple(option for option in range_.options if option not in lacking)
    default = range_.default if range_.default in options else options[0]
    return dimension.model_copy(update={"range": Choice(options=options, default=default)})


def _needs(spec: JobSpec, ref: str, slots: Values, catalogue: Catalogue) -> list[Refusal]:
    return [r for r in _refusals(spec, ref, slots, catalogue) if r.code == "part_needs" and _names(r, slots)]


def _names(refusal: Refusal, slots: Values) -> bool:
    return any(refusal.detail.startswith(f"{slot}.{name} ") for slot, name in slots.items())


def _refusals(spec: JobSpec, ref: str, slots: Values, catalogue: Catalogue) -> list[Refusal]:
    recipe = spec.recipe(values_with(spec, ref, slots), seed=spec.seed)
    return refusals(recipe, spec.provided_by(ref), catalogue)


def _check_some_legal(spec: JobSpec, catalogue: Catalogue) -> None:
    found: list[Refusal] = []
    for slots in islice(_combinations(spec.space), MAX_COMBINATIONS):
        for source in spec.sources:
            reasons = _refusals(spec, source.ref, slots, catalogue)
            if not reasons:
                return
            found = found or reasons  # of the defaults, which come first
    _refuse(found)


def _combinations(space: Space) -> Iterator[Values]:
    """Every way to fill the slots, the defaults first."""
    yield {}
    slots = {d.path: d.range.options for d in space.dimensions if d.path in SLOTS and isinstance(d.range, Choice)}
    for options in product(*slots.values()):
        yield dict(zip(slots, options, strict=True))


def _refuse(found: list[Refusal]) -> None:
    told = list(dict.fromkeys(found))
    detail = "nothing can be trained as asked: " + "; ".join(refusal.detail for refusal in told[:5])
    raise Invalid("recipe_refused", detail, refusals=[refusal.model_dump() for refusal in told])
