"""`probe_job`: a few real steps of each source's default recipe, before anything is spent on the search."""

import logging
import shutil
from functools import partial
from typing import Any

from domain.catalogue import catalogue
from domain.default_space import at_defaults, fit_to_time
from domain.errors import GraftError, LeaseLost, Unavailable
from domain.job import JobSpec
from domain.lot import LotOrder, TrialOrder
from domain.states import JobState
from domain.teaching import TEACHER, needs, teacher_in_time, without_teacher
from store.events import tell
from store.jobs import set_facts
from store.leases import claim, hold, release
from store.moves import become
from store.session import after_commit
from store.tables import DatasetRow, JobRow
from worker.context import Context
from worker.crew import ChildDied, precision_of
from worker.files import pack_folder, source_files, source_pack
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
        order = _order(context, spec, dataset, related, job_id, fence, str(scratch))
        estimate = _ask(context, order, lease)
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
        lease.insist(partial(_store, context, job_id, fence, estimate))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _store(context: Context, job_id: str, fence: int, estimate: dict[str, Any]) -> None:
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        spec = JobSpec.model_validate(job.spec)
        fitted = fit_to_time(spec, float(estimate["s_per_trial"]))
        if fitted != spec:
            estimate = {**estimate, "s_per_trial": estimate["s_per_trial"] * _n_steps(fitted) / _n_steps(spec)}
            text = f"steps narrowed to about {_n_steps(fitted)} a trial: at the probed speed the time buys no more"
            tell(session, job_id, "job.log", {"text": text})
        fitted = teacher_in_time(fitted, float(estimate.get("teacher", {}).get("s_per_trial", 0.0)))
        set_facts(session, job, estimate=estimate, spec=fitted.model_dump(mode="json"))
        tell(session, job_id, "job.estimate", estimate)
        become(session, job, JobState.RUNNING, attempt=0)
        after_commit(session, partial(context.doorbell.wake, "advance", job_id))


def _n_steps(spec: JobSpec) -> int:
    return int(at_defaults(spec, spec.sources[0].ref)["steps"])


def _order(
    context: Context, spec: JobSpec, dataset: DatasetRow, related: DatasetRow | None, job_id: str, fence: int,
    scratch: str,
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
        pack = pack_folder(context, str(dataset.items_blob), recipe.backbone, recipe.data.resolution)
        taught = "teacher" in needs(recipe, catalogue())
        trials.append(
            TrialOrder(
                trial_id=name, number=number, recipe=recipe, pack=str(pack),
                source=source_files(context, spec, recipe.source),
                teachers=teachers if taught else (),
                source_pack=source_pack(context, related.items_blob if related else None, recipe),
            )
        )  # fmt: skip
    return LotOrder(
        lot_id=job_id, fence=fence, trials=tuple(trials), objective=spec.objective, n_folds=spec.n_folds,
        classes=tuple((dataset.summary or {})["classes"]), scratch=scratch,
        device=str(facts["device"]), precision=precision_of(facts), n_threads=int(facts["n_threads"]),
    )  # fmt: skip


def _ask(context: Context, order: LotOrder, lease: Lease) -> dict[str, Any]:
    """Seconds and bytes per source, what a trial takes, and where there is a choice which source promises most."""
    found: dict[str, Any] = {}
    started = [t.trial_id for t in order.trials if t.trial_id != TEACHER and t.source.weights is not None]
    ranked = tuple(started) if len(started) > 1 else ()
    with context.crew.order(ProbeLot(order=order, ranked=ranked), timeout_s=0.5) as news:
        for message in news:
            lease.check()
            if isinstance(message, Refused):
                raise GraftError(message.code, message.detail)
            if isinstance(message, Done):
                found = dict(message.body)
    probed = dict(zip((t.trial_id for t in order.trials), found["trials"], strict=True))
    teacher = probed.pop(TEACHER, None)
    sources = list(probed.values())
    facts = context.crew.facts
    estimate = {
        "s_per_trial": sum(s["s_per_trial"] for s in sources) / len(sources),
        "memory_bytes": max(s["peak_bytes"] for s in found["trials"]),
        "device": facts["device"], "device_name": facts["device_name"], "precision": facts["precision"],
        "sources": sources,
    }  # fmt: skip
    if teacher is not None:
        estimate["teacher"] = teacher
    return estimate | {name: found[name] for name in ("ranking", "ranked_by", "ranks_first") if name in found}


def _refuse(context: Context, job_id: str, fence: int, code: str, detail: str) -> None:
    """The job cannot run: say why before it costs anything."""
    with context.transaction() as session:
        job = hold(session, JobRow, job_id, fence)
        become(session, job, JobState.FAILED, error={"code": code, "detail": detail})
