"""Cheap first tries in the chain of proposals, read from the rows."""

from dataclasses import replace

from sqlalchemy.orm import Session

from domain.fidelity import CHEAP, PROMOTED, Cheap, cheap_attrs, cheap_recipe, due
from domain.job import JobSpec
from domain.recipe import Recipe
from domain.states import TrialState
from store.trials import NewTrial, sketch_trials, trials_by_id


def tried_cheaply(spec: JobSpec, new: NewTrial) -> NewTrial:
    """A searched trial as it is tried first; the last of a budget has nobody to promote it and runs in full."""
    if spec.fidelity is None or _is_last(spec, new.number):
        return new
    recipe = cheap_recipe(spec.fidelity, Recipe.model_validate(new.recipe))
    return replace(new, recipe=recipe.model_dump(mode="json"), attrs=new.attrs | cheap_attrs(spec.fidelity))


def promoted(session: Session, job_id: str, spec: JobSpec, number: int, *, seed: int) -> NewTrial | None:
    """Trial `number` as the best cheap one in full, if it is time for that."""
    if spec.fidelity is None:
        return None
    trials = sketch_trials(session, job_id)
    ended = [
        Cheap(t.number, t.value)
        for t in trials
        if t.origin == CHEAP and t.state == TrialState.PRUNED and t.value is not None
    ]
    before = [t.of for t in trials if t.origin == PROMOTED and t.of is not None]
    of = due(spec, ended, before, last=_is_last(spec, number) and spec.confirm is None)
    if of is None:
        return None
    values = trials_by_id(session, [t.id for t in trials if t.number == of])[0].values
    recipe = spec.recipe(values, seed=seed).model_dump(mode="json")
    return NewTrial(number, values, recipe, attrs={"origin": PROMOTED, "of": of})


def _is_last(spec: JobSpec, number: int) -> bool:
    return spec.budget.trials is not None and number == spec.budget.trials - 1
