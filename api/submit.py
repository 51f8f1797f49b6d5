"""From a request to a job that can be run: every reference looked up, every choice legal, every default filled in."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from api.legality import legal_spec
from api.schemas.job import DEFAULT_SOURCES, Bounds, JobCreate
from domain.catalogue import Catalogue, catalogue
from domain.default_space import job_space
from domain.errors import Conflict, Invalid
from domain.job import (
    Budget,
    JobSpec,
    Objective,
    ResolvedSource,
    Teacher,
    check_source_ref,
    default_folds,
    default_objective,
)
from domain.states import DatasetState, JobState
from store.datasets import get_dataset, get_source
from store.jobs import get_job
from store.tables import DatasetRow, JobRow, TrialRow


def resolve(session: Session, workspace_id: str, asked: JobCreate) -> JobSpec:
    """The stored form of a request. NotFound for what is not there, Conflict for what is not ready, Invalid for what
    cannot be done, each saying what to change. What it refers to is kept from being deleted until the commit."""
    facts = catalogue()
    dataset = _ready_dataset(session, workspace_id, asked.dataset_id)
    per_split = (dataset.summary or {}).get("statistics", {}).get("per_split", {})
    n_train, n_val = int(per_split.get("train", 0)), int(per_split.get("val", 0))
    facts.task(dataset.task)
    refs = list(dict.fromkeys(asked.sources or _default_sources(facts)))
    sources = tuple(_source(session, workspace_id, ref, facts) for ref in refs)
    teacher = None if asked.teacher is None else _teacher(session, workspace_id, asked.teacher, _classes(dataset))
    space = job_space(
        dataset.task, sources, facts, n_train=n_train, has_teacher=teacher is not None, overrides=_plain(asked.space)
    )
    spec = JobSpec(
        task=dataset.task, sources=sources, teacher=teacher, space=space, chosen=tuple(asked.space),
        budget=asked.budget, objective=Objective(name=asked.objective) if asked.objective else default_objective(n_val),
        n_folds=asked.n_folds or default_folds(n_val), sampler=asked.sampler, pruner=asked.pruner,
        anchors=asked.anchors, parallel=asked.parallel, keep_top=asked.keep_top, seed=asked.seed,
    )  # fmt: skip
    return legal_spec(spec, facts, asked.space)


def default_spec(facts: Catalogue, *, n_train: int = 1000, n_val: int = 200) -> JobSpec:
    """What a job gets that names a dataset of this size, ten trials and nothing else."""
    task = facts.tasks[0].name
    sources = tuple(_shared_source(ref, facts) for ref in _default_sources(facts))
    space = job_space(task, sources, facts, n_train=n_train, has_teacher=False)
    spec = JobSpec(
        task=task, sources=sources, space=space, budget=Budget(trials=10), objective=default_objective(n_val),
        n_folds=default_folds(n_val),
    )  # fmt: skip
    return legal_spec(spec, facts, ())


def _ready_dataset(session: Session, workspace_id: str, dataset_id: str) -> DatasetRow:
    row = get_dataset(session, workspace_id, check_ref(dataset_id, "dataset"), share=True)
    if row.state == DatasetState.REJECTED:
        why = (row.error or {}).get("detail", "see the dataset")
        raise Conflict("dataset_not_ready", f"dataset {row.id} was rejected: {why}", state=row.state, error=row.error)
    if row.state != DatasetState.READY:
        raise Conflict("dataset_not_ready", f"dataset {row.id} is {row.state}; wait until it is READY", state=row.state)
    return row


def check_ref(ref: str, noun: str) -> str:
    """A reference in a body; one that no id can look like is simply not there."""
    if not (ref.isascii() and ref.replace("_", "").replace(":", "").replace("-", "").isalnum()):
        raise Invalid(f"bad_{noun}", f"{ref[:80]!r} is no {noun}")
    return ref


def _default_sources(facts: Catalogue) -> Sequence[str]:
    published = {f"torchvision:{backbone.name}" for backbone in facts.backbones if backbone.weights}
    found = [ref for ref in DEFAULT_SOURCES if ref in published]
    return found or sorted(published)[:1] or [f"scratch:{facts.backbones[0].name}"]


def _source(session: Session, workspace_id: str, ref: str, facts: Catalogue) -> ResolvedSource:
    if ":" in check_source_ref(ref):
        return _shared_source(ref, facts)
    if ref.startswith("src_"):
        row = get_source(session, workspace_id, ref, share=True)
        return ResolvedSource(
            ref=ref, backbone=facts.backbone(row.backbone).name, kind="registered", blob=row.blob,
            classes=tuple(row.classes or ()), licence=row.licence,
        )  # fmt: skip
    job, best = _finished(session, workspace_id, ref)
    recipe = best.recipe
    spec = JobSpec.model_validate(job.spec)
    licence = next((s.licence for s in spec.sources if s.ref == recipe["source"]), "unknown")
    dataset = session.get(DatasetRow, job.dataset_id)
    return ResolvedSource(
        ref=ref, backbone=facts.backbone(recipe["backbone"]).name, kind="job", blob=best.checkpoint_blob,
        classes=tuple(_classes(dataset)), licence=licence,
    )  # fmt: skip


def _shared_source(ref: str, facts: Catalogue) -> ResolvedSource:
    """Published weights, or none at all: `torchvision:<backbone>`, `scratch:<backbone>`."""
    kind, _, name = ref.partition(":")
    if kind == "scratch":
        return ResolvedSource(ref=ref, backbone=facts.backbone(name).name, kind="scratch", licence="none")
    weights = facts.backbone(name).weights
    if not weights:
        legal = sorted(b.name for b in facts.backbones if b.weights)
        detail = f"there are no published weights for {name}; there are for {', '.join(legal) or 'none'}"
        raise Invalid("no_published_weights", detail, legal=legal)
    return ResolvedSource(ref=ref, backbone=name, kind="torchvision", licence=weights[0].licence)


def _teacher(session: Session, workspace_id: str, ref: str, classes: Sequence[str]) -> Teacher:
    if not ref.startswith("job_"):
        raise Invalid("bad_teacher", "a teacher is the id of a COMPLETE job")
    job, best = _finished(session, workspace_id, check_ref(ref, "teacher"))
    taught = _classes(session.get(DatasetRow, job.dataset_id))
    if list(taught) != list(classes):
        raise Invalid(
            "teacher_classes_differ", "a teacher must have the classes of the dataset, in the same order",
            teacher=list(taught)[:100], dataset=list(classes)[:100],
        )  # fmt: skip
    recipe = best.recipe
    assert best.checkpoint_blob is not None
    return Teacher(
        ref=ref, backbone=recipe["backbone"], head=recipe["head"]["kind"], blob=best.checkpoint_blob,
        resolution=recipe["data"]["resolution"],
    )  # fmt: skip


def _finished(session: Session, workspace_id: str, job_id: str) -> tuple[JobRow, TrialRow]:
    """A COMPLETE job and its best trial, whose checkpoint is kept."""
    job = get_job(session, workspace_id, job_id, share=True)
    if job.state != JobState.COMPLETE:
        raise Conflict(
            "not_complete", f"job {job.id} is {job.state}; it can be used when it is COMPLETE", state=job.state
        )
    best = session.get(TrialRow, job.best_trial_id) if job.best_trial_id else None
    if best is None or best.checkpoint_blob is None:
        raise Conflict("not_complete", f"job {job.id} has kept no checkpoint", state=job.state)
    return job, best


def _classes(dataset: DatasetRow | None) -> Sequence[str]:
    return list(((dataset.summary if dataset else None) or {}).get("classes", ()))


def _plain(space: dict[str, Any]) -> dict[str, Any]:
    """Narrowings as `Space.narrow` takes them."""
    return {
        path: value.model_dump(exclude_none=True) if isinstance(value, Bounds) else value
        for path, value in space.items()
    }
