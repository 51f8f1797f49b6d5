"""The end of a search belongs to its best recipes: they are trained again with other seeds before one is chosen."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from domain.catalogue import catalogue
from domain.confirming import MOST, REPEATED, Repeat, wanted
from domain.job import JobSpec
from domain.recipe import Recipe
from domain.states import TrialState
from domain.teaching import fixed_trials, needs
from store.tables import JobRow, TrialRow
from store.trials import NewTrial, TrialSketch, sketch_trials, trials_by_id
from worker.budgets import left_for_training_s
from worker.standing import standing

CLOSED_FORM = "linear_probe"  # solved, not trained: another seed is the same network
PAGE = 20  # rows read at once, the best first


def repeats_of(trials: list[TrialSketch]) -> list[Repeat]:
    """The repeats of a job, those included that are still to end; one that was cancelled never happened."""
    return [
        Repeat(t.number, t.of)
        for t in trials
        if t.origin == REPEATED and t.of is not None and t.state != TrialState.CANCELLED
    ]


def seeds_of_one_recipe(trials: Sequence[TrialRow]) -> set[str]:
    """The ids of those of `trials` that repeat a recipe or are repeated: any of them may be what is handed back."""
    repeats = [t for t in trials if t.attrs.get("origin") == REPEATED]
    firsts = {t.attrs["of"] for t in repeats}
    return {t.id for t in repeats} | {t.id for t in trials if t.number in firsts}


def repeatable(spec: JobSpec, trial: TrialRow) -> bool:
    """Whether the recipe of `trial` may be trained again with another seed.

    Anchors are not: they are compared with as they stand. Nor is what a trial of the job itself teaches: by then the
    teacher would be another one, perhaps that very trial, and with it the recipe.
    """
    if trial.anchor is not None or trial.values.get("schedule") == CLOSED_FORM:
        return False
    if spec.teacher is None or not spec.teacher.trained_here:
        return True
    return "teacher" not in needs(Recipe.model_validate(trial.recipe), catalogue())


def leading(session: Session, job_id: str, spec: JobSpec) -> list[TrialRow]:
    """The best recipes that may be repeated, as many as are to be confirmed: the first trial of each, best first."""
    if spec.confirm is None:
        return []
    again = {t.id for t in sketch_trials(session, job_id) if t.origin == REPEATED}
    ids = [t.trial_id for t in standing(session, job_id, spec).ranked if t.trial_id not in again]
    found: list[TrialRow] = []
    for start in range(0, len(ids), PAGE):
        rows = {row.id: row for row in trials_by_id(session, ids[start : start + PAGE])}
        found += [rows[trial_id] for trial_id in ids[start : start + PAGE] if repeatable(spec, rows[trial_id])]
        if len(found) >= spec.confirm.top:
            break
    return found[: spec.confirm.top]


def repeated(session: Session, job_id: str, spec: JobSpec, number: int, *, seed: int) -> NewTrial | None:
    """Trial `number` as a repeat, once what is left of the budget is what the repeats to come need; None before.

    So the best recipes are confirmed at the end, and if a new one comes among them meanwhile, it is confirmed as well.
    """
    if spec.confirm is None:
        return None
    trials = sketch_trials(session, job_id)
    rows = {row.number: row for row in leading(session, job_id, spec)}
    due = wanted(spec.confirm, list(rows), repeats_of(trials))
    if not due or not _is_time(session, job_id, spec, number, [rows[n].cost_s for n in due]):
        return None
    first = rows[due[0]]
    recipe = Recipe.model_validate(first.recipe).model_copy(update={"seed": seed})
    attrs = {"origin": REPEATED, "of": first.number}
    return NewTrial(number, first.values, recipe.model_dump(mode="json"), attrs=attrs)


def _is_time(session: Session, job_id: str, spec: JobSpec, n_trials: int, costs_s: list[float]) -> bool:
    """Whether no more of any budget is left than repeats of these costs need, and than they may take."""
    budget, job = spec.budget, session.get_one(JobRow, job_id)
    if budget.trials is not None:
        most = max(1, int(MOST * (budget.trials - len(fixed_trials(spec, catalogue())))))
        if budget.trials - n_trials <= min(len(costs_s), most):
            return True
    left_s = left_for_training_s(session, job, spec)
    if budget.wall_s is not None and left_s is not None:
        need_s = sum(costs_s) / (spec.parallel or 1)
        if left_s <= min(need_s, MOST * budget.wall_s):
            return True
    return budget.device_s is not None and budget.device_s - job.cost_s <= min(sum(costs_s), MOST * budget.device_s)
