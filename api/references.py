"""What a request names, looked up: a dataset, the weights to start from, a finished job. Kept until the commit."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from domain.catalogue import BackboneFacts, Catalogue, catalogue
from domain.errors import Conflict, Invalid
from domain.job import JobSpec, ResolvedSource, check_source_ref
from domain.recipe import Recipe
from domain.states import DatasetState, JobState
from store.datasets import get_dataset, get_source
from store.jobs import get_job
from store.tables import DatasetRow, JobRow, TrialRow


def ready_dataset(session: Session, workspace_id: str, dataset_id: str) -> DatasetRow:
    """A dataset that can be trained on; Conflict("dataset_not_ready") says how it stands."""
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


def find_source(session: Session, workspace_id: str, ref: str, facts: Catalogue) -> ResolvedSource:
    """Weights to start from: published, registered, or those of a COMPLETE job."""
    if ":" in check_source_ref(ref):
        return shared_source(ref, facts)
    if ref.startswith("src_"):
        row = get_source(session, workspace_id, ref, share=True)
        backbone = facts.backbone(row.backbone)
        return ResolvedSource(
            ref=ref, backbone=backbone.name, kind="registered", blob=row.blob, licence=row.licence,
            classes=tuple(row.classes or ()), n_classes=_head_width(backbone, row.n_classes),
        )  # fmt: skip
    job, best = finished_job(session, workspace_id, ref)
    recipe = Recipe.model_validate(best.recipe)
    _check_plain(ref, recipe)
    backbone = facts.backbone(recipe.backbone)
    spec = JobSpec.model_validate(job.spec)
    licence = next((s.licence for s in spec.sources if s.ref == recipe.source), "unknown")
    classes = tuple(classes_of(session.get(DatasetRow, job.dataset_id)))
    n_classes = len(classes) if recipe.head.kind == "linear" else 0
    return ResolvedSource(
        ref=ref, backbone=backbone.name, kind="job", blob=best.checkpoint_blob, licence=licence,
        classes=classes, n_classes=_head_width(backbone, n_classes),
    )  # fmt: skip


def shared_source(ref: str, facts: Catalogue) -> ResolvedSource:
    """Published weights, or none at all: `torchvision:<backbone>`, `scratch:<backbone>`."""
    kind, _, name = ref.partition(":")
    if kind == "scratch":
        return ResolvedSource(ref=ref, backbone=facts.backbone(name).name, kind="scratch", licence="none")
    backbone = facts.backbone(name)
    weights = backbone.weights
    if not weights:
        legal = sorted(b.name for b in facts.backbones if b.weights)
        detail = f"there are no published weights for {name}; there are for {', '.join(legal) or 'none'}"
        raise Invalid("no_published_weights", detail, legal=legal)
    n_classes = _head_width(backbone, weights[0].n_classes)
    return ResolvedSource(ref=ref, backbone=name, kind="torchvision", licence=weights[0].licence, n_classes=n_classes)


def finished_job(session: Session, workspace_id: str, job_id: str) -> tuple[JobRow, TrialRow]:
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


def source_dataset(session: Session, workspace_id: str, dataset_id: str, target: DatasetRow) -> str:
    """A dataset whose images the sources have learned from, or ones like them."""
    row = ready_dataset(session, workspace_id, dataset_id)
    if row.id == target.id or (row.content_hash is not None and row.content_hash == target.content_hash):
        detail = "the source dataset is the job's own dataset; name what the source was trained on, or leave it out"
        raise Invalid("source_dataset_is_target", detail)
    if row.task != target.task:
        detail = f"the source dataset is one of {row.task}, and the job is one of {target.task}"
        raise Invalid("source_dataset_task_differs", detail, source_dataset=row.task, dataset=target.task)
    return row.id


def classes_of(dataset: DatasetRow | None) -> Sequence[str]:
    return list(((dataset.summary if dataset else None) or {}).get("classes", ()))


def _head_width(backbone: BackboneFacts, n_classes: int) -> int:
    """How many classes the source's own head tells apart, where this backbone can carry such a head."""
    return n_classes if "source_head" in backbone.provides else 0


def _check_plain(ref: str, recipe: Recipe) -> None:
    """A network of another structure than its backbone's teaches, but no other network can start from it."""
    grown = (f"{s}.{p.name}" for s, p in recipe.parts.items() if catalogue().part(s, p.name).adds_weights)
    if name := next(grown, None):
        why = f"{name}, which gives {recipe.backbone} weights of its own"
    elif several := next((f"{s}.{p.name}" for s, p in recipe.parts.items() if p.params.get("ensemble") is True), None):
        why = f"{several}, which keeps an ensemble of networks"
    else:
        return
    detail = f"the best network of {ref} was made with {why}: it can be a teacher, but no source to start from"
    raise Invalid("source_not_plain", detail, source=ref)
