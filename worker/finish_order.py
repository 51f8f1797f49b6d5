"""What the trial process is told to finish a job: who may be handed back, who is compared with, what is to be said."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy.orm import Session

from domain.choice import Measured, choose, to_measure, why_chosen
from domain.confirming import confirmed
from domain.job import RANKING, CombinedKind, Confirmed, JobSpec
from domain.lot import DataFacts, FinishCandidate, FinishOrder, SearchFacts
from domain.recipe import Recipe
from domain.states import TrialState
from store.cache import fetch_blob
from store.datasets import test_looks
from store.tables import DatasetRow, JobRow, TrialRow
from store.trials import TrialSketch, sketch_trials, trials_of
from worker.budgets import attempts_of, elapsed_s
from worker.context import Context
from worker.files import pack_folder
from worker.repeats import leading, repeatable, repeats_of
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
        sketches = sketch_trials(session, job_id)
        leads = {t.number for t in leading(session, job_id, spec)}
        search = _search_facts(session, job, spec, list(trials.values()), sketches)
        n_looks = test_looks(session, dataset.id)
    ranked, repeats = stand.ranked, repeats_of(sketches)
    seeds = confirmed({t.number: t.values[spec.objective.name] for t in ranked}, repeats)
    of = {repeat.number: repeat.of for repeat in repeats}
    able = [t for t in ranked if trials[t.trial_id].checkpoint_blob]
    anchors = [t for t in able if trials[t.trial_id].anchor is not None]
    alone = leads | {t.number for t in able if not repeatable(spec, trials[t.trial_id])}
    winner, recipe = chosen_recipe(spec, able, seeds, of, alone)
    others = [t for t in able if t.number in recipe or t in able[: spec.n_members]]

    def candidate(trial: Measured) -> FinishCandidate:
        row = trials[trial.trial_id]
        told = {name: trial.values[name] for name in to_measure(spec.objectives, spec.limits) if name in trial.values}
        found = _candidate(context, dataset, row, of=of.get(row.number), eligible=_keeps_limits(spec, trial))
        return found.model_copy(update={"measured": told})

    summary = dict(dataset.summary or {})
    return FinishOrder(
        job_id=job_id, job_name=job.name, task=spec.task, objective=spec.objective, classes=tuple(summary["classes"]),
        winner=candidate(winner),
        anchors=tuple(candidate(t) for t in sorted(anchors, key=lambda t: t.number)),
        others=tuple(candidate(t) for t in others if t not in anchors and t != winner),
        combining=combining(spec), n_members=spec.n_members, confirmed=tuple(seeds),
        front=front_points(stand, spec),
        data=DataFacts(
            dataset_id=dataset.id, name=dataset.name, content_hash=str(dataset.content_hash),
            statistics=summary["statistics"], n_findings=int(summary.get("n_findings", 0)),
            findings=dict(Counter(f["code"] for f in dataset.findings or [])),
        ),
        search=search.model_copy(update={"limits": why_chosen(winner, ranked, spec.objectives, spec.limits)}),
        licences={s.ref: s.licence for s in spec.sources},
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
    spec: JobSpec, able: Sequence[Measured], seeds: Sequence[Confirmed], of: Mapping[int, int], alone: Collection[int]
) -> tuple[Measured, set[int]]:
    """The winner and the numbers of all trials of its recipe: of those that are `able`, with their weights, the best.

    Where recipes were confirmed, these stand with their mean over seeds, each for the best of its seeds. Those `alone`
    stand beside them with their one value: what is not repeated, and what would be next, had the search gone on. The
    rest do not stand, for each of them may be a lucky one.
    """
    means, name = {each.number: each.mean for each in seeds}, spec.objective.name
    recipes: dict[int, list[Measured]] = {}
    for trial in able:
        first = of.get(trial.number, trial.number)
        if not means or first in means or first in alone:
            recipes.setdefault(first, []).append(trial)
    best = {first: choose(trials, spec.objectives, spec.limits) for first, trials in recipes.items()}
    stands = [replace(t, values={**t.values, name: means.get(first, t.values[name])}) for first, t in best.items()]
    chosen = choose(stands, spec.objectives, spec.limits)
    recipe = of.get(chosen.number, chosen.number)
    return best[recipe], {recipe} | {number for number, first in of.items() if first == recipe}


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


def _search_facts(
    session: Session, job: JobRow, spec: JobSpec, trials: list[TrialRow], sketches: list[TrialSketch]
) -> SearchFacts:
    with SEARCHES.of(job.id, spec) as search:
        search.learn(read_history(session, job.id, search))
        mattered = search.importance()
    return SearchFacts(
        n_trials=len(trials), n_searched=sum(attempt.searched for attempt in attempts_of(sketches)),
        by_state=dict(Counter(t.state for t in trials)), budget=spec.budget,
        sampler=spec.sampler, pruner=spec.pruner, seed=spec.seed, n_folds=spec.n_folds,
        sources=tuple(s.ref for s in spec.sources), cost_s=job.cost_s, elapsed_s=elapsed_s(session, job),
        stopped_by=job.stopped_by, importance=mattered, ranks_first=(job.estimate or {}).get("ranks_first"),
        trained=tuple({str(t.recipe["source"]): None for t in trials if t.state == TrialState.COMPLETE}),
    )  # fmt: skip
