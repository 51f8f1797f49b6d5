"""From a request to a job that can be run: every reference looked up, every choice legal, every default filled in."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.orm import Session

from api.legality import legal_spec
from api.references import (
    check_ref,
    classes_of,
    find_source,
    finished_job,
    ready_dataset,
    shared_source,
    source_dataset,
)
from api.schemas.job import DEFAULT_SOURCES, Bounds, JobCreate
from domain.catalogue import Catalogue, catalogue
from domain.default_space import job_space
from domain.errors import Invalid
from domain.job import SOURCE_REF, Budget, JobSpec, Objective, Teacher, default_folds, default_objective
from domain.recipe import SLOTS, Recipe
from domain.space import Space
from domain.teaching import fixed_trials, teacher_values
from store.tables import DatasetRow


def resolve(session: Session, workspace_id: str, asked: JobCreate) -> JobSpec:
    """The stored form of a request. NotFound for what is not there, Conflict for what is not ready, Invalid for what
    cannot be done, each saying what to change. What it refers to is kept from being deleted until the commit."""
    facts = catalogue()
    dataset = ready_dataset(session, workspace_id, asked.dataset_id)
    per_split = (dataset.summary or {}).get("statistics", {}).get("per_split", {})
    n_train, n_val = int(per_split.get("train", 0)), int(per_split.get("val", 0))
    facts.task(dataset.task)
    refs = list(dict.fromkeys(asked.sources or _default_sources(facts)))
    sources = tuple(find_source(session, workspace_id, ref, facts) for ref in refs)
    teacher = None if asked.teacher is None else _teacher(session, workspace_id, asked, dataset, n_train)
    related = asked.source_dataset_id
    source_dataset_id = None if related is None else source_dataset(session, workspace_id, related, dataset)
    space = job_space(
        dataset.task, sources, facts, n_train=n_train, has_teacher=teacher is not None,
        has_source_data=source_dataset_id is not None, overrides=_plain(asked.space),
    )  # fmt: skip
    spec = JobSpec(
        task=dataset.task, sources=sources, teacher=teacher, source_dataset_id=source_dataset_id, space=space,
        chosen=tuple(asked.space),
        budget=asked.budget,
        objectives=(Objective(name=asked.objective) if asked.objective else default_objective(n_val),),
        n_folds=asked.n_folds or default_folds(n_val), sampler=asked.sampler, pruner=asked.pruner,
        anchors=asked.anchors, parallel=asked.parallel, keep_top=asked.keep_top, seed=asked.seed,
    )  # fmt: skip
    spec = legal_spec(spec, facts, asked.space)
    _check_budget(spec, facts)
    return spec


def default_spec(facts: Catalogue, *, n_train: int = 1000, n_val: int = 200) -> JobSpec:
    """What a job gets that names a dataset of this size, ten trials and nothing else."""
    task = facts.tasks[0].name
    sources = tuple(shared_source(ref, facts) for ref in _default_sources(facts))
    space = job_space(task, sources, facts, n_train=n_train, has_teacher=False)
    spec = JobSpec(
        task=task, sources=sources, space=space, budget=Budget(trials=10), objectives=(default_objective(n_val),),
        n_folds=default_folds(n_val),
    )  # fmt: skip
    return legal_spec(spec, facts, ())


def _default_sources(facts: Catalogue) -> Sequence[str]:
    published = {f"torchvision:{backbone.name}" for backbone in facts.backbones if backbone.weights}
    found = [ref for ref in DEFAULT_SOURCES if ref in published]
    return found or sorted(published)[:1] or [f"scratch:{facts.backbones[0].name}"]


def _teacher(session: Session, workspace_id: str, asked: JobCreate, dataset: DatasetRow, n_train: int) -> Teacher:
    """Who is to teach. What this job trains itself is known by name only, until it is trained."""
    ref, facts = check_ref(str(asked.teacher), "teacher"), catalogue()
    if ref in ("best", "ensemble"):
        if not asked.anchors:
            detail = f"teacher {ref!r} learns from the job's own trials, and the anchors are the first: leave them on"
            raise Invalid("teacher_needs_anchors", detail)
        return Teacher(kind="best" if ref == "best" else "ensemble", ref=ref)
    if ref.startswith("job_"):
        return _finished_teacher(session, workspace_id, ref, classes_of(dataset))
    if not SOURCE_REF.match(ref):
        detail = (
            f"{ref!r} is no teacher; write the id of a COMPLETE job, best, ensemble, or a source to fine-tune first"
        )
        raise Invalid("bad_teacher", detail)
    source = find_source(session, workspace_id, ref, facts)

    def space_with(overrides: dict[str, Any]) -> Space:
        return job_space(dataset.task, (source,), facts, n_train=n_train, has_teacher=False, overrides=overrides)

    own: dict[str, Any] = {}  # what the job has fixed holds for its teacher too, where that network can take it
    for path, value in _plain(asked.space).items():
        if path != "source" and path.partition(".")[0] not in SLOTS:
            with suppress(Invalid):
                space_with({path: value})
                own[path] = value
    alone = JobSpec(
        task=dataset.task, sources=(source,), space=space_with(own), budget=asked.budget,
        objectives=(default_objective(0),), n_folds=1,
    )  # fmt: skip
    return Teacher(kind="source", ref=ref, source=source, values=teacher_values(alone))


def _finished_teacher(session: Session, workspace_id: str, ref: str, classes: Sequence[str]) -> Teacher:
    job, best = finished_job(session, workspace_id, ref)
    taught = classes_of(session.get(DatasetRow, job.dataset_id))
    if list(taught) != list(classes):
        raise Invalid(
            "teacher_classes_differ", "a teacher must have the classes of the dataset, in the same order",
            teacher=list(taught)[:100], dataset=list(classes)[:100],
        )  # fmt: skip
    return Teacher(
        kind="job", ref=ref, trial_id=best.id, blob=best.checkpoint_blob, recipe=Recipe.model_validate(best.recipe)
    )


def _check_budget(spec: JobSpec, facts: Catalogue) -> None:
    """A teacher that the job trains itself is worth nothing if no trial is left to learn from it."""
    if spec.teacher is None or not spec.teacher.trained_here or spec.budget.trials is None:
        return
    first = [name for name, _ in fixed_trials(spec, facts)]
    if spec.budget.trials <= len(first):
        detail = (
            f"{spec.budget.trials} trials end before any learns from the teacher: {', '.join(first)} come first; "
            f"give at least {len(first) + 1}"
        )
        raise Invalid("budget_too_small_for_teacher", detail, least=len(first) + 1)


def _plain(space: dict[str, Any]) -> dict[str, Any]:
    """Narrowings as `Space.narrow` takes them."""
    return {
        path: value.model_dump(exclude_none=True) if isinstance(value, Bounds) else value
        for path, value in space.items()
    }
