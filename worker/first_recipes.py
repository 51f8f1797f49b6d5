"""What a job tries after its fixed trials and before its sampler is asked: recipes of past jobs, else priors."""

from typing import Any

from sqlalchemy.orm import Session

from domain.catalogue import catalogue
from domain.history import Meta, PastTrial
from domain.job import JobSpec, Values, WarmStart
from domain.priors import priors
from domain.teaching import fixed_trials
from search.warm import Suggestion, nearest, portfolio, room, weighed
from store.history import past_jobs, past_trials


def warm_started(
    session: Session, workspace_id: str, spec: JobSpec, estimate: dict[str, Any], *, pooled: bool
) -> tuple[JobSpec, str | None]:
    """The job with the recipes to try first, and one sentence about them; unchanged if there are none.

    `pooled` is whether this installation lets jobs learn from other workspaces.
    """
    fixed = fixed_trials(spec, catalogue())
    n = room(spec.budget, len(fixed), float(estimate["s_per_trial"]))
    if spec.learn_from == "nothing" or not n or "meta" not in estimate:
        return spec, None
    meta = Meta.model_validate(estimate["meta"])
    everywhere = spec.learn_from == "installation" and pooled
    past = past_jobs(session, task=spec.task, workspace_id=None if everywhere else workspace_id)
    near = nearest(meta, past)
    jobs = weighed(near, past_trials(session, [job.id for job, _ in near]))

    def source_of(trial: PastTrial) -> str:
        return next((s.ref for s in spec.sources if s.backbone == trial.backbone), spec.sources[0].ref)

    def wanted(values: Values) -> bool:
        recipe = spec.recipe(values, seed=0)
        return recipe not in known and not spec.refusals(recipe, catalogue())

    known = [spec.recipe(values, seed=0) for _, values in fixed]
    found = portfolio(spec.space, jobs, n, source_of=source_of, wanted=wanted) if jobs else []
    warm = [WarmStart(values=s.values, why=_why(s, named=not everywhere)) for s in found] or priors(spec, meta)[:n]
    if not warm:
        return spec, None
    n_jobs = len({s.job.id for s in found})
    origin = f"from {_count(n_jobs, 'past job')}" if found else "derived from how well the source knows the classes"
    first = "is tried first" if len(warm) == 1 else "are tried first"
    sentence = f"{_count(len(warm), 'recipe')} {origin} {first}: {'; '.join(w.why for w in warm)}"
    return spec.model_copy(update={"warm_starts": tuple(warm)}), sentence


def _why(suggestion: Suggestion, *, named: bool) -> str:
    """Another workspace's jobs are not named."""
    if not named:
        return "did well in a past job of this installation"
    meta = suggestion.job.meta
    place = f"trial {suggestion.trial.number} of {suggestion.job.id}"
    return f"did well as {place}, on {meta.n_train} items of {meta.n_classes} classes"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
