"""A lot in a worker's hands: claimed by compare-and-set, written out as an order with every file on this machine."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from domain.choice import to_measure
from domain.fidelity import CHEAP
from domain.heads import cuts
from domain.job import JobSpec
from domain.lot import LotOrder, TrialOrder
from domain.recipe import Recipe
from domain.states import JobState, LotState, TrialState
from domain.teaching import TEACHER
from store.leases import claim
from store.moves import become
from store.tables import DatasetRow, JobRow, LotRow, TrialRow
from store.trials import rests, trials_of_lot, waiting_lot
from worker.context import Context
from worker.crew import precision_of, prefetches
from worker.files import fetch_folder, pack_folder, source_files, source_pack
from worker.teachers import appoint, teacher_files


@dataclass
class Claimed:
    """A lot as claimed: everything about it that does not change while it runs."""

    lot_id: str
    workspace_id: str
    job_id: str
    fence: int
    attempt: int
    spec: JobSpec
    items_blob: str
    source_items_blob: str | None  # of the source dataset
    classes: tuple[str, ...]
    trials: list[TrialRow]


def claim_lot(context: Context, lot_id: str) -> Claimed | None:
    """The lot and its trials RUNNING under a lease; None if there is nothing to do or somebody else does it."""
    with context.transaction() as session:
        return _claim(context, session, lot_id)


def claim_next(context: Context, job_id: str) -> Claimed | None:
    """The same of the lot of a job that has waited longest, those left out that others are claiming at this moment."""
    with context.transaction() as session:
        lot_id = waiting_lot(session, job_id, lock=True)
        return None if lot_id is None else _claim(context, session, lot_id)


def _claim(context: Context, session: Session, lot_id: str) -> Claimed | None:
    settings = context.settings
    lot = session.get(LotRow, lot_id)
    job = session.get(JobRow, lot.job_id) if lot is not None else None
    if lot is None or job is None or job.state != JobState.RUNNING:
        return None
    fence = claim(
        session, LotRow, lot_id, state_from=LotState.WAITING, state_to=LotState.RUNNING,
        owner=context.worker_id, lease_s=settings.lease_s, max_attempts=settings.max_attempts,
    )  # fmt: skip
    if fence is None:
        return None
    session.refresh(lot)
    spec = JobSpec.model_validate(job.spec)
    trials = [t for t in trials_of_lot(session, lot_id) if not TrialState(t.state).finished and not rests(t)]
    appoint(session, spec, trials)
    for trial in trials:
        if trial.state == TrialState.PAUSED:
            become(session, trial, TrialState.WAITING)
        become(session, trial, TrialState.RUNNING)
    dataset = session.get_one(DatasetRow, job.dataset_id)
    related = session.get_one(DatasetRow, spec.source_dataset_id) if spec.source_dataset_id else None
    return Claimed(
        lot_id=lot_id, workspace_id=lot.workspace_id, job_id=job.id, fence=fence, attempt=lot.attempt,
        spec=spec, items_blob=str(dataset.items_blob), source_items_blob=related.items_blob if related else None,
        classes=tuple((dataset.summary or {})["classes"]), trials=trials,
    )  # fmt: skip


def measured(spec: JobSpec, trial: TrialRow) -> tuple[str, ...]:
    """What is measured of a trial's network beside its predictions."""
    unmeasured = trial.anchor == TEACHER or trial.attrs.get("origin") == CHEAP
    return () if unmeasured else to_measure(spec.objectives, spec.limits)


def lot_order(context: Context, claimed: Claimed, scratch: Path) -> LotOrder:
    """The order with every file it needs on this machine."""
    facts = context.crew.start()
    trials = []
    for row in claimed.trials:
        recipe = Recipe.model_validate(row.recipe)
        measure = measured(claimed.spec, row)
        pack = pack_folder(context, claimed.items_blob, recipe.backbone, recipe.data.resolution)
        resume = fetch_folder(context, row.resume_blob, scratch / f"resume-{row.id}") if row.resume_blob else None
        trials.append(
            TrialOrder(
                trial_id=row.id,
                number=row.number,
                recipe=recipe,
                pack=str(pack),
                resume=resume,
                source=source_files(context, claimed.spec, recipe.source),
                teachers=teacher_files(context, claimed.spec, row),
                source_pack=source_pack(context, claimed.source_items_blob, recipe, measure),
                measure=measure,
            )
        )
    return LotOrder(
        lot_id=claimed.lot_id, fence=claimed.fence, trials=tuple(trials), objective=claimed.spec.objective,
        n_folds=claimed.spec.n_folds, classes=claimed.classes, scratch=str(scratch),
        activations=str(context.cache / claimed.workspace_id / "activations"), cuts=cuts(claimed.spec.space),
        device=str(facts["device"]), precision=precision_of(facts), n_threads=int(facts["n_threads"]),
        compiling=context.settings.compiling, prefetch=prefetches(facts), paces=str(context.cache / "paces"),
    )  # fmt: skip
