"""Which trial comes next? Asked in the order of this file: fixed recipes first, the sampler last."""

from domain.catalogue import catalogue
from domain.errors import GraftError
from domain.feasible import Feasible
from domain.heads import AT_ONCE, head_key
from domain.job import JobSpec, Values, WarmStart
from domain.recipe import Recipe
from domain.teaching import fixed_trials
from search.study import Search, derive_seed
from store.trials import NewTrial, count_origin
from worker.context import Context
from worker.fidelity import promoted, tried_cheaply
from worker.repeats import repeated
from worker.searches import read_history

WARM_START = "warm_start"
MAX_TRIES = 20  # proposals for one number before what is illegal in the last of them is mended


def propose(context: Context, job_id: str, spec: JobSpec, search: Search, number: int) -> NewTrial:
    """Trial `number` of a job. `search` counts it as running; whoever holds it forgets it if it is not inserted."""
    fixed = fixed_trials(spec, catalogue())
    if number < len(fixed):
        name, values = fixed[number]
        recipe = spec.recipe(values, seed=seed_of(spec, number))
        return NewTrial(number, values, recipe.model_dump(mode="json"), anchor=name)
    with context.reading() as session:
        history = read_history(session, job_id, search)
        n_warm = count_origin(session, job_id, WARM_START)
        seed = seed_of(spec, number)
        again = promoted(session, job_id, spec, number, seed=seed) or repeated(session, job_id, spec, number, seed=seed)
    search.learn(history)
    if again is not None:
        return again
    if n_warm < len(spec.warm_starts):
        return _warm(spec, spec.warm_starts[n_warm], number)
    return tried_cheaply(spec, _asked(spec, search, number))


def propose_lot(context: Context, job_id: str, spec: JobSpec, search: Search, first: int, most: int) -> list[NewTrial]:
    """Trials `first`, `first + 1`, …, up to `most` of them, for one lot: one, or heads that are trained together."""
    found = [propose(context, job_id, spec, search, first)]
    key = _head_key(found[0])
    while key is not None and len(found) < min(most, AT_ONCE):
        number = first + len(found)
        try:
            new = propose(context, job_id, spec, search, number)
        except GraftError:  # it is met again when this number comes first
            break
        if _head_key(new) != key:
            search.forget(number)  # asked for again in its turn
            break
        found.append(new)
    return found


def _head_key(new: NewTrial) -> str | None:
    """`head_key` of what the sampler proposed. What else comes next depends on the rows of what came before."""
    if new.anchor is not None or "origin" in new.attrs:
        return None
    recipe = Recipe.model_validate(new.recipe)
    return head_key(recipe, len(catalogue().backbone(recipe.backbone).stages))


def seed_of(spec: JobSpec, number: int) -> int:
    return derive_seed(spec.seed, number) >> 1  # fits a signed 32-bit integer


def _warm(spec: JobSpec, start: WarmStart, number: int) -> NewTrial:
    """A recipe that the probe has found worth trying before the sampler is asked."""
    recipe = spec.recipe(start.values, seed=seed_of(spec, number))
    attrs = {"origin": WARM_START, "why": start.why}
    return NewTrial(number, start.values, recipe.model_dump(mode="json"), attrs=attrs)


def _asked(spec: JobSpec, search: Search, number: int) -> NewTrial:
    """What the sampler proposes, the first legal recipe of a few, else the legal recipe nearest to the last of them."""
    values: Values = {}
    reasons: list[str] = []
    for again in range(MAX_TRIES):
        proposal = search.ask(number, again=again)
        recipe = spec.recipe(proposal.values, seed=seed_of(spec, number))
        refused = spec.refusals(recipe, catalogue())
        if not refused:
            return NewTrial(number, proposal.values, recipe.model_dump(mode="json"), attrs=proposal.attrs)
        search.forget(number)
        values, reasons = proposal.values, [r.detail for r in refused]
    mended = Feasible(spec, catalogue()).mended(values)
    if mended is not None and not spec.refusals(recipe := spec.recipe(mended, seed=seed_of(spec, number)), catalogue()):
        return NewTrial(number, mended, recipe.model_dump(mode="json"))
    raise GraftError("no_legal_recipe", f"{MAX_TRIES} proposals in a row were refused; the last: {'; '.join(reasons)}")
