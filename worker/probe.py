"""`probe_job`: a few real steps of each source's default recipe, before anything is spent on the search."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from domain.catalogue import catalogue
from domain.default_space import at_defaults
from domain.errors import GraftError, LeaseLost, Unavailable
from domain.estimate import batch_sizes, packs_bytes
from domain.job import JobSpec
from domain.lot import LotOrder, TrialOrder
from domain.recipe import Recipe
from domain.states import JobState
from domain.teaching import TEACHER, needs, without_teacher
from store.events import tell
from store.jobs import set_facts
from store.leases import claim, hold, release
from store.moves import become
from store.session import after_commit
from store.tables import DatasetRow, JobRow
from store.workers import live_workers
from worker.context import Context
from worker.crew import ChildDied, precision_of, prefetches
from worker.files import pack_folder, source_files
from worker.first_recipes import warm_started
from worker.forecast import Counts, Forecast, Machine, check_disk, fits, forecast, smaller_batches
from worker.lease import Lease
from worker.teachers import finished_teacher
from worker.wire import Done, ProbeLot, Refused

log = logging.getLogger(__name__)

BACK_OFF_S = 2.0


def probe_job(context: Context, job_id: str) -> None:
    settings = context.settings
    with context.transaction() as session:
        fence = claim(
            session, JobRow, job_id, state_from=[JobState.WAITING, JobState.PROBING], state_to=JobState.PROBING,
            owner=context.worker_id, lease_s=settings.lease_s, max_attempts=settings.max_attempts,
        )  # fmt: skip
    if fence is None:
        return
    try:
        with Lease(context, JobRow, job_id, fence) as lease:
            _probe(context, job_id, fence, lease)
    except LeaseLost as lost:  # paused, cancelled, or in other hands
        log.info("%s", lost.detail)


def _probe(context: Context, job_id: str, fence: int, lease: Lease) -> None:
    with context.reading() as session:
        job = session.get_one(JobRow, job_id)
        attempt = job.attempt
        dataset = session.get_one(DatasetRow, job.dataset_id)
        spec = JobSpec.model_validate(job.spec)
        related = session.get_one(DatasetRow, spec.source_dataset_id) if spec.source_dataset_id else None
    scratch = context.cache / "scratch" / f"{job_id}-{fence}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        order_of = partial(_order, context, dataset, related, job_id, fence, scratch)
        found = _forecast(context, spec, dataset, order_of, lease)
    except LeaseLost:
        raise
    except (ChildDied, Unavailable) as error:
        code, reason = (error.code, error.reason) if isinstance(error, ChildDied) else (error.code, error.detail)
        if attempt >= context.settings.max_attempts:
            _refuse(context, job_id, fence, code, f"{reason}; tried {attempt} times")
            return
        with context.transaction() as session:
            release(session, JobRow, job_id, fence, not_before_s=BACK_OFF_S * attempt)
    except GraftError as error:
        _refuse(context, job_id, fence, error.code, error.detail)
    else:
        lease.insist(partial(_store, context, job_id, fence, found))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _store(context: Context, job_id: str, fence: int, found: Forecast) -> None:
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        budget = JobSpec.model_validate(job.spec).budget  # it may have been extended meanwhile
        for note in (*found.notes, *_about_objectives(found.spec)):
            tell(session, job_id, "job.log", {"text": note})
        spec, first = warm_started(
            session, job.workspace_id, found.spec.model_copy(update={"budget": budget}), found.estimate,
            pooled=context.settings.pool_history,
        )  # fmt: skip
        if first is not None:
            tell(session, job_id, "job.log", {"text": first})
        estimate = found.estimate | ({"first_recipes": first} if first else {})
        set_facts(session, job, estimate=estimate, spec=spec.model_dump(mode="json"))
        tell(session, job_id, "job.estimate", estimate)
        become(session, job, JobState.RUNNING, attempt=0)
        after_commit(session, partial(context.doorbell.wake, "advance", job_id))


def _about_objectives(spec: JobSpec) -> list[str]:
    """What several objectives change."""
    if len(spec.objectives) == 1 or spec.pruner == "none":
        return []
    return [
        f"With {len(spec.objectives)} objectives no trial is stopped early: a curve shows {spec.objective.name} alone, "
        "and a trial that is behind in it may be ahead in another."
    ]


def _order(
    context: Context, dataset: DatasetRow, related: DatasetRow | None, job_id: str, fence: int, scratch: Path,
    spec: JobSpec,
) -> LotOrder:  # fmt: skip
    """One trial per source: the space's defaults, which is what plain searching starts from. Then the teacher's own."""
    facts = context.crew.start()
    teachers = finished_teacher(context, spec)
    recipes = {f"probe-{n}": spec.recipe(at_defaults(spec, s.ref), seed=spec.seed) for n, s in enumerate(spec.sources)}
    if spec.teacher is not None and spec.teacher.kind == "source":
        recipes[TEACHER] = spec.recipe(spec.teacher.values, seed=spec.seed)
    if not teachers:  # nobody teaches yet: what one more look costs is left out
        recipes = {name: without_teacher(recipe, catalogue()) for name, recipe in recipes.items()}
    trials = []
    for number, (name, recipe) in enumerate(recipes.items()):
        taught = "teacher" in needs(recipe, catalogue())
        trials.append(
            TrialOrder(
                trial_id=name, number=number, recipe=recipe, pack=_pack(context, dataset, recipe),
                source=source_files(context, spec, recipe.source),
                teachers=teachers if taught else (),
                source_pack=None if related is None else _pack(context, related, recipe),
            )
        )  # fmt: skip
    return LotOrder(
        lot_id=job_id, fence=fence, trials=tuple(trials), objective=spec.objective, n_folds=spec.n_folds,
        classes=tuple((dataset.summary or {})["classes"]), scratch=str(scratch),
        device=str(facts["device"]), precision=precision_of(facts), n_threads=int(facts["n_threads"]),
        compiling=context.settings.compiling, prefetch=prefetches(facts), paces=str(context.cache / "paces"),
    )  # fmt: skip


def _pack(context: Context, dataset: DatasetRow, recipe: Recipe) -> str:
    return str(pack_folder(context, str(dataset.items_blob), recipe.backbone, recipe.data.resolution))


def _forecast(
    context: Context, spec: JobSpec, dataset: DatasetRow, order_of: Callable[[JobSpec], LotOrder], lease: Lease
) -> Forecast:  # fmt: skip
    """Probe at smaller and smaller batches until one fits into memory, and say what the job will take."""
    asked = spec
    context.crew.start()
    machine, counts = _machine(context, dataset), counts_of(dataset)
    check_disk(packs_bytes(spec, catalogue(), sum(counts)), machine)  # before the first pack is made
    while True:
        order = order_of(spec)
        try:
            found = _ask(context, order, spec, lease)
            if fits(found, machine):
                break
        except (ChildDied, GraftError) as error:
            if error.code != "out_of_memory":
                raise
        spec = smaller_batches(spec, machine)
    told = forecast(spec, [t.trial_id for t in order.trials], found, counts, machine)
    gone = sorted(set(batch_sizes(asked)) - set(batch_sizes(spec)))
    if gone:
        sizes = ", ".join(map(str, gone))
        note = f"data.batch_size {sizes} left out: a step with {gone[0]} does not fit into the memory of this worker"
        told = replace(told, notes=(note, *told.notes))
    return told


def _machine(context: Context, dataset: DatasetRow) -> Machine:
    """Packs of the dataset that are here already take no more room."""
    with context.reading() as session:
        n_workers = len(live_workers(session, "trials", 3 * context.settings.heartbeat_s))
    packs = (context.cache / dataset.workspace_id / "packs").glob(f"{dataset.id}-*/pack/*")
    free_bytes = shutil.disk_usage(context.cache).free + sum(file.stat().st_size for file in packs)
    return Machine(context.crew.facts, max(1, n_workers), free_bytes)


def counts_of(dataset: DatasetRow) -> Counts:
    per_split = (dataset.summary or {}).get("statistics", {}).get("per_split", {})
    return Counts(*(int(per_split.get(split, 0)) for split in Counts._fields))


def _ask(context: Context, order: LotOrder, spec: JobSpec, lease: Lease) -> dict[str, Any]:
    """What the trial process finds out: seconds and bytes of each trial, which source promises most, and what the
    dataset is like. The export is rehearsed where time has to be kept for it."""
    found: dict[str, Any] = {}
    ranked = tuple(t.trial_id for t in order.trials if t.trial_id != TEACHER and t.source.weights is not None)
    wall_s = spec.budget.wall_s
    message = ProbeLot(order=order, ranked=ranked, export=wall_s is not None, limit_s=wall_s)
    with context.crew.order(message, timeout_s=0.5) as news:
        for heard in news:
            lease.check()
            if isinstance(heard, Refused):
                raise GraftError(heard.code, heard.detail)
            if isinstance(heard, Done):
                found = dict(heard.body)
    return found


def _refuse(context: Context, job_id: str, fence: int, code: str, detail: str) -> None:
    """The job cannot run: say why before it costs anything."""
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        become(session, job, JobState.FAILED, error={"code": code, "detail": detail})
