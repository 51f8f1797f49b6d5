"""`finish_job`: the best trial and the anchors meet the test split once; the winner becomes a bundle."""

import logging
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from domain.errors import GraftError, LeaseLost, Unavailable
from domain.job import JobSpec
from domain.lot import DataFacts, FinishCandidate, FinishOrder, FinishOutcome, SearchFacts
from domain.recipe import Recipe
from domain.states import JobState, LotState
from domain.teaching import TEACHER
from store.blob_rows import add_blob
from store.cache import fetch_blob
from store.datasets import count_test_look, test_looks
from store.events import tell
from store.leases import claim, hold, release
from store.moves import become
from store.session import after_commit
from store.tables import DatasetRow, JobRow, TrialRow
from store.trials import best_trials, lots_of, set_trial_facts, trials_by_id, trials_of
from worker.advance import elapsed_s
from worker.context import Context
from worker.crew import ChildDied
from worker.files import pack_folder
from worker.lease import Lease
from worker.wire import Done, Finish, Refused

log = logging.getLogger(__name__)

BACK_OFF_S = 2.0


def finish_job(context: Context, job_id: str) -> None:
    settings = context.settings
    with context.transaction() as session:
        if lots_of(session, job_id, [LotState.RUNNING]):
            return  # the end of that lot wakes us again
        fence = claim(
            session, JobRow, job_id, state_from=JobState.FINISHING, state_to=None,
            owner=context.worker_id, lease_s=settings.lease_s, max_attempts=settings.max_attempts,
        )  # fmt: skip
    if fence is None:
        return
    scratch = context.cache / "scratch" / f"{job_id}-{fence}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        with Lease(context, JobRow, job_id, fence) as lease:
            _finish(context, job_id, fence, lease, scratch)
    except LeaseLost as lost:  # cancelled, or in other hands
        log.info("%s", lost.detail)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _finish(context: Context, job_id: str, fence: int, lease: Lease, scratch: Path) -> None:
    with context.reading() as session:
        attempt = session.get_one(JobRow, job_id).attempt
    try:
        order = _order(context, job_id, scratch)
        outcome = _ask(context, order, lease)
        lease.insist(partial(_store, context, job_id, fence, order, outcome))
    except LeaseLost:
        raise
    except (ChildDied, Unavailable, OSError) as error:
        reason = error.reason if isinstance(error, ChildDied) else str(error)
        if attempt >= context.settings.max_attempts:
            _fail(context, job_id, fence, "finish_failed", f"{reason}; tried {attempt} times")
            return
        with context.transaction() as session:
            release(session, JobRow, job_id, fence, not_before_s=BACK_OFF_S * attempt)
    except GraftError as error:
        _fail(context, job_id, fence, error.code, error.detail)


def _order(context: Context, job_id: str, scratch: Path) -> FinishOrder:
    facts = context.crew.start()
    with context.reading() as session:
        job = session.get_one(JobRow, job_id)
        dataset = session.get_one(DatasetRow, job.dataset_id)
        spec = JobSpec.model_validate(job.spec)
        trials = trials_of(session, job_id)
        winner = best_trials(session, job_id, direction=spec.objective.direction)[0]
        search = _search_facts(session, job, spec, trials)
        n_looks = test_looks(session, dataset.id)
    anchors = [t for t in trials if t.anchor and t.anchor != TEACHER and t.state == "COMPLETE" and t.checkpoint_blob]
    summary = dict(dataset.summary or {})
    licence = spec.source(Recipe.model_validate(winner.recipe).source).licence
    return FinishOrder(
        job_id=job_id, job_name=job.name, task=spec.task, objective=spec.objective, classes=tuple(summary["classes"]),
        winner=_candidate(context, dataset, winner), anchors=tuple(_candidate(context, dataset, t) for t in anchors),
        data=DataFacts(
            dataset_id=dataset.id, name=dataset.name, content_hash=str(dataset.content_hash),
            statistics=summary["statistics"], n_findings=int(summary.get("n_findings", 0)),
            findings=dict(Counter(f["code"] for f in dataset.findings or [])),
        ),
        search=search, licence=licence, n_test_looks=n_looks + 1, scratch=str(scratch),
        device=str(facts["device"]), n_threads=int(facts["n_threads"]),
    )  # fmt: skip


def _candidate(context: Context, dataset: DatasetRow, trial: TrialRow) -> FinishCandidate:
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
        remarks=tuple(trial.attrs.get("remarks", ())),
    )  # fmt: skip


def _search_facts(session: Session, job: JobRow, spec: JobSpec, trials: list[TrialRow]) -> SearchFacts:
    return SearchFacts(
        n_trials=len(trials), by_state=dict(Counter(t.state for t in trials)), budget=spec.budget,
        sampler=spec.sampler, pruner=spec.pruner, seed=spec.seed, n_folds=spec.n_folds,
        sources=tuple(s.ref for s in spec.sources), cost_s=job.cost_s, elapsed_s=elapsed_s(session, job),
        stopped_by=job.stopped_by,
    )  # fmt: skip


def _ask(context: Context, order: FinishOrder, lease: Lease) -> FinishOutcome:
    found: dict[str, Any] = {}
    with context.crew.order(Finish(order=order), timeout_s=0.5) as news:
        for message in news:
            lease.check()
            if isinstance(message, Refused):
                raise GraftError(message.code, message.detail)
            if isinstance(message, Done):
                found = dict(message.body)
    return FinishOutcome.model_validate(found)


def _store(context: Context, job_id: str, fence: int, order: FinishOrder, outcome: FinishOutcome) -> None:
    with context.reading() as session:
        workspace_id = session.get_one(JobRow, job_id).workspace_id
    key = f"{workspace_id}/jobs/{job_id}/{fence}/bundle.zip"
    info = context.blobs.put(key, Path(outcome.bundle))
    result = outcome.result.model_dump(mode="json")
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        add_blob(session, workspace_id, key, info, job_id)
        count_test_look(session, job.dataset_id)
        for trial in trials_by_id(session, outcome.tests):
            set_trial_facts(session, trial, test=outcome.tests[trial.id])
        tell(session, job_id, "job.result", result)
        become(session, job, JobState.COMPLETE, result=result, bundle_blob=key, best_trial_id=order.winner.trial_id)
        after_commit(session, partial(context.doorbell.wake, "advance", job_id))


def _fail(context: Context, job_id: str, fence: int, code: str, detail: str) -> None:
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        become(session, job, JobState.FAILED, error={"code": code, "detail": detail})
        after_commit(session, partial(context.doorbell.wake, "advance", job_id))
