"""How the COMPLETE trials of a job stand to each other: who leads under its limits, and who is on the front."""

from typing import NamedTuple

from sqlalchemy.orm import Session

from domain.choice import Measured, compared, front, measured, rank
from domain.job import FrontPoint, JobSpec
from store.trials import best_trials, scored_trials

MOST_KEPT = 20  # trials of the front that keep their weights


class Standing(NamedTuple):
    """Trials that can be handed back, the best first, and those of them that no other one beats."""

    ranked: tuple[Measured, ...]
    front: tuple[Measured, ...]  # empty where there is one objective and no limit: the best is all there is to say


def leader(session: Session, job_id: str, spec: JobSpec) -> str | None:
    """The id of the trial that would be handed back if the job ended now."""
    if is_plain(spec):
        best = best_trials(session, job_id, direction=spec.objective.direction)
        return best[0].id if best else None
    ranked = standing(session, job_id, spec).ranked
    return ranked[0].trial_id if ranked else None


def worth_keeping(session: Session, job_id: str, spec: JobSpec, limit: int) -> set[str]:
    """The ids of the trials whose weights are kept: the best `limit` by the first objective; where more than that was
    asked for, also the best under the limits and the front."""
    kept = {t.id for t in best_trials(session, job_id, direction=spec.objective.direction, limit=limit)}
    if is_plain(spec):
        return kept
    found = standing(session, job_id, spec)
    return kept | {t.trial_id for t in (*found.ranked[:limit], *found.front[:MOST_KEPT])}


def is_plain(spec: JobSpec) -> bool:
    """One objective and no limit: then the rows can be ranked where they lie."""
    return len(compared(spec.objectives, spec.limits)) == 1 and not spec.limits


def standing(session: Session, job_id: str, spec: JobSpec) -> Standing:
    """The trials of a job as their rows tell it."""
    trials = [measured(t.id, t.number, t.value, t.metrics, spec.objectives) for t in scored_trials(session, job_id)]
    asked = compared(spec.objectives, spec.limits)
    ranked = tuple(rank(trials, spec.objectives, spec.limits))
    return Standing(ranked, tuple(front(trials, asked)) if len(asked) > 1 else ())


def front_points(found: Standing, spec: JobSpec) -> tuple[FrontPoint, ...]:
    """The front as the result shows it."""
    names = [objective.name for objective in compared(spec.objectives, spec.limits)]
    return tuple(
        FrontPoint(trial_id=t.trial_id, number=t.number, values={name: t.values[name] for name in names})
        for t in found.front
    )
