"""Is there anything to train in the space of a job? What no legal recipe can hold is refused with its reasons if the
request named it, and left out of the search if not."""

from collections.abc import Collection

from domain.catalogue import Catalogue
from domain.default_space import at_defaults
from domain.errors import Invalid
from domain.feasible import SOURCE, Feasible, Option
from domain.job import JobSpec
from domain.recipe import Refusal
from domain.space import Choice, Condition, Dimension, Space, Value


def legal_spec(spec: JobSpec, catalogue: Catalogue, named: Collection[str]) -> JobSpec:
    """`spec` without the options that no legal recipe can hold; Invalid("recipe_refused") if one of those is named in
    the request, or if there is no legal recipe at all. Of several sources, those that can be trained stay."""
    feasible = Feasible(spec, catalogue)
    possible = {v: [o for o in options if feasible.can_hold(v, o)] for v, options in feasible.variables.items()}
    if not all(possible.values()):
        _refuse(feasible.deadlock() or _at_defaults(spec, catalogue))
    gone: dict[str, list[Value]] = {}  # path -> options that no legal recipe holds
    for variable, options in feasible.variables.items():
        left = _by_path(variable, possible[variable])
        for path, values in _by_path(variable, options).items():
            gone[path] = [value for value in values if value not in left.get(path, [])]
            if path in named and path != SOURCE and gone[path]:
                asked = [o for o in options if o not in possible[variable] and _holds(variable, o, path, gone[path])]
                told = [refusal for option in asked for refusal in feasible.refusals(variable, option)]
                _refuse(told or [_closed_in(path, value) for value in gone[path]])
    dimensions = tuple(d for d in (_without(d, gone) for d in spec.space.dimensions) if d is not None)
    return spec.model_copy(update={"space": Space(dimensions=dimensions, fixed=spec.space.fixed)})


def _by_path(variable: str, options: Collection[Option]) -> dict[str, list[Value]]:
    """The values that stand at the path of a variable, and at those of its parts' params."""
    found: dict[str, list[Value]] = {}
    for option in options:
        pairs = [(variable, option.value), *((f"{variable}.{option.value}.{p}", v) for p, v in option.params)]
        for path, value in pairs:
            if value not in found.setdefault(path, []):
                found[path].append(value)
    return found


def _holds(variable: str, option: Option, path: str, values: list[Value]) -> bool:
    return any(value in values for value in _by_path(variable, [option]).get(path, []))


def _without(dimension: Dimension, gone: dict[str, list[Value]]) -> Dimension | None:
    """The dimension with what is left of it; None if it can never be active."""
    when = tuple(_left(condition, gone) for condition in dimension.when)
    lost = gone.get(dimension.path, [])
    if not all(condition.values for condition in when):
        return None
    range_ = dimension.range
    if lost and isinstance(range_, Choice):
        options = tuple(option for option in range_.options if option not in lost)
        if not options:
            return None
        default = range_.default if range_.default in options else options[0]
        range_ = Choice(options=options, default=default)
    return Dimension(path=dimension.path, range=range_, when=when)


def _left(condition: Condition, gone: dict[str, list[Value]]) -> Condition:
    lost = gone.get(condition.path, [])
    return condition.model_copy(update={"values": tuple(v for v in condition.values if v not in lost)})


def _at_defaults(spec: JobSpec, catalogue: Catalogue) -> list[Refusal]:
    recipes = (spec.recipe(at_defaults(spec, source.ref), seed=spec.seed) for source in spec.sources)
    return [refusal for recipe in recipes for refusal in spec.refusals(recipe, catalogue)]


def _closed_in(path: str, value: Value) -> Refusal:
    detail = f"no legal recipe has {path} = {value!r} beside what else is asked for"
    return Refusal(code="parts_clash", detail=detail)


def _refuse(found: list[Refusal]) -> None:
    told = list(dict.fromkeys(found))
    detail = "nothing can be trained as asked: " + "; ".join(refusal.detail for refusal in told[:5])
    raise Invalid("recipe_refused", detail, refusals=[refusal.model_dump() for refusal in told])
