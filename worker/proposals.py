"""Which trial comes next? Asked in the order of this file: fixed recipes first, the sampler last."""

from domain.catalogue import catalogue
from domain.errors import GraftError
from domain.job import JobSpec
from domain.recipe import refusals
from domain.teaching import fixed_trials
from search.study import Search, derive_seed
from store.trials import NewTrial
from worker.context import Context
from worker.searches import read_history

MAX_TRIES = 20  # proposals for one number before an illegal combination counts as the space's fault


def propose(context: Context, job_id: str, spec: JobSpec, search: Search, number: int) -> NewTrial:
    """Trial `number` of a job. `search` counts it as running; whoever holds it forgets it if it is not inserted."""
    fixed = fixed_trials(spec, catalogue())
    if number < len(fixed):
        name, values = fixed[number]
        recipe = spec.recipe(values, seed=seed_of(spec, number))
        return NewTrial(number, values, recipe.model_dump(mode="json"), anchor=name)
    with context.reading() as session:
        history = read_history(session, job_id, search)
    search.learn(history)
    return _asked(spec, search, number)


def seed_of(spec: JobSpec, number: int) -> int:
    return derive_seed(spec.seed, number) >> 1  # fits a signed 32-bit integer


def _asked(spec: JobSpec, search: Search, number: int) -> NewTrial:
    """What the sampler proposes, the first legal recipe of a few."""
    reasons: list[str] = []
    for again in range(MAX_TRIES):
        proposal = search.ask(number, again=again)
        recipe = spec.recipe(proposal.values, seed=seed_of(spec, number))
        refused = refusals(recipe, spec.provided_by(recipe.source), catalogue())
        if not refused:
            return NewTrial(number, proposal.values, recipe.model_dump(mode="json"), attrs=proposal.attrs)
        search.forget(number)
        reasons = [r.detail for r in refused]
    raise GraftError("no_legal_recipe", f"{MAX_TRIES} proposals in a row were refused; the last: {'; '.join(reasons)}")
