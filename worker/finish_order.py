"""What the trial process is told to finish a job: who may be handed back, who is compared with, what is to be said."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from domain.choice import Choice, Measured, choose, to_measure
from domain.confirming import confirmed
from domain.job import RANKING, CombinedKind, Confirmed, JobSpec
from domain.lot import DataFacts, FinishCandidate, FinishOrder, SearchFacts
from domain.recipe import Recipe
from store.cache import fetch_blob
from store.datasets import test_looks
from store.tables import DatasetRow, JobRow, TrialRow
from store.trials import sketch_trials, trials_of
from worker.budgets import elapsed_s
from worker.context import Context
from worker.files import pack_folder
from worker.repeats import repeats_of
from worker.searches import SEARCHES, read_history
from worker.standing import front_points, standing


def finish_order(context: Context, job_id: str, scratch: Path) -> FinishOrder:
    """The order, with every file it needs on this machine."""
    facts = context.crew.start()
    with context.reading() as session:
        job = session.get_one(JobRow, job_id)
        dataset = session.get_one(DatasetRow, job.dataset_id)
        spec = JobSpec.model_validate(job.spec)
        trials = {t.id: t for t in trials_of(session, job_id)}
        stand = standing(session, job_id, spec)
        repeats = repeats_of(sketch_trials(session, job_id))
        search = _search_facts(session, job, spec, list(trials.values()))
        n_looks = test_looks(session, dataset.id)
    ranked = stand.ranked
    seeds = confirmed({t.number: t.values[spec.objective.name] for t in ranked}, repeats)
    of = {repeat.number: repeat.of for repeat in repeats}
    able = [t for t in ranked if trials[t.trial_id].checkpoint_blob]
    anchors = [t for t in able if trials[t.trial_id].anchor is not None]
    choice, recipe = chosen_recipe(spec, ranked, able, seeds, of, {t.number for t in anchors})
    others = [t for t in able if t.number in recipe or t in able[: spec.keep_top]]

    def candidate(trial: Measured) -> FinishCandidate:
        row = trials[trial.trial_id]
        told = {name: trial.values[name] for name in to_measure(spec.objectives, spec.limits) if name in trial.values}
        found = _candidate(context, dataset, row, of=of.get(row.number), eligible=_keeps_limits(spec, trial))
        return found.model_copy(update={"measured": told})

    summary = dict(dataset.summary or {})
    return FinishOrder(
        job_id=job_id, job_name=job.name, task=spec.task, objective=spec.objective, classes=tuple(summary["classes"]),
        winner=candidate(choice.winner).model_copy(update={"eligible": True}),
        anchors=tuple(candidate(t) for t in sorted(anchors, key=lambda t: t.number)),
        others=tuple(candidate(t) for t in others if t not in anchors and t != choice.winner),
        combining=combining(spec), n_members=spec.keep_top, confirmed=tuple(seeds),
        front=front_points(stand, spec),
        data=DataFacts(
            dataset_id=dataset.id, name=dataset.name, content_hash=str(dataset.content_hash),
            statistics=summary["statistics"], n_findings=int(summary.get("n_findings", 0)),
            findings=dict(Counter(f["code"] for f in dataset.findings or [])),
        ),
        search=search.model_copy(update={"limits": choice.why}), licences={s.ref: s.licence for s in spec.sources},
        n_test_looks=n_looks + 1, scratch=str(scratch),
        device=str(facts["device"]), n_threads=int(facts["n_threads"]),
    )  # fmt: skip


def combining(spec: JobSpec) -> tuple[CombinedKind, ...]:
    """What combinations may be handed back. Trials were measured for what else the job asks of a network, and their
    combinations were not: an ensemble is slower and larger, and what a soup still knows of the source is unknown, as is
    whether it keeps a limit on val."""
    asked = {*(o.name for o in spec.objectives[1:]), *(limit.objective for limit in spec.limits)}
    if not spec.combine or "source_accuracy" in asked or any(limit.objective in RANKING for limit in spec.limits):
        return ()
    return ("soup",) if asked & {"latency_ms", "latency_batch_ms", "size_bytes"} else ("soup", "ensemble")


def chosen_recipe(
    spec: JobSpec, ranked: Sequence[Measured], able: Sequence[Measured], seeds: Sequence[Confirmed],
    of: Mapping[int, int], anchors: Collection[int],
) -> tuple[Choice, set[int]]:  # fmt: skip
    """The winner and the numbers of all trials of its recipe: the best trial, or where recipes were confirmed the best
    of them by the mean over seeds, and of its seeds the best. Only those that are `able`, with their weights, win."""
    means = {each.number: each.mean for each in seeds}
    if not means:
        choice = choose(able, spec.objectives, spec.limits)
        return choice, {choice.winner.number}
    name = spec.objective.name
    recipes = [
        Measured(t.trial_id, t.number, {**t.values, name: means.get(t.number, t.values[name])})
        for t in ranked if t.number in means or t.number in anchors
    ]  # fmt: skip
    first = choose(recipes, spec.objectives, spec.limits)
    recipe = {first.winner.number} | {number for number, of_which in of.items() if of_which == first.winner.number}
    best = choose([t for t in able if t.number in recipe], spec.objectives, spec.limits)
    return first._replace(winner=best.winner), recipe


def _keeps_limits(spec: JobSpec, trial: Measured) -> bool:
    return all(limit.objective in trial.values and limit.holds(trial.values[limit.objective]) for limit in spec.limits)


def _candidate(
    context: Context, dataset: DatasetRow, trial: TrialRow, *, of: int | None, eligible: bool
) -> FinishCandidate:
    recipe = Recipe.model_validate(trial.recipe)
    folder = context.cache / trial.workspace_id / "weights"
    pack = pack_folder(context, str(dataset.items_blob), recipe.backbone, recipe.data.resolution)
    predictions = fetch_blob(context.blobs, trial.predictions_blob, folder) if trial.predictions_blob else None
    assert trial.checkpoint_blob is not None
    assert trial.value is not None
    return FinishCandidate(
        trial_id=trial.id, number=trial.number, anchor=trial.anchor, recipe=recipe,
        weights=str(fetch_blob(context.blobs, trial.checkpoint_blob, folder)),
        predictions=str(predictions) if predictions else None, pack=str(pack), value=trial.value,
        remarks=tuple(trial.attrs.get("remarks", ())), of=of, eligible=eligible,
    )  # fmt: skip


def _search_facts(session: Session, job: JobRow, spec: JobSpec, trials: list[TrialRow]) -> SearchFacts:
    with SEARCHES.of(job.id, spec) as search:
        search.learn(read_history(session, job.id, search))
        mattered = search.importance()
    return SearchFacts(
        n_trials=len(trials), by_state=dict(Counter(t.state for t in trials)), budget=spec.budget,
        sampler=spec.sampler, pruner=spec.pruner, seed=spec.seed, n_folds=spec.n_folds,
        sources=tuple(s.ref for s in spec.sources), cost_s=job.cost_s, elapsed_s=elapsed_s(session, job),
        stopped_by=job.stopped_by, importance=mattered, ranks_first=(job.estimate or {}).get("ranks_first"),
    )  # fmt: skip
