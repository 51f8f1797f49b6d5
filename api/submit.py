"""From a request to a job that can be run: every reference looked up, every choice legal, every default filled in."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.orm import Session

from api.legality import legal_spec
from api.objectives import check_measurable, limits_of, objectives_of
from api.references import (
    check_ref,
    classes_of,
    find_source,
    finished_job,
    ready_dataset,
    shared_source,
    source_dataset,
)
from api.schemas.job import Bounds, JobCreate
from domain.budget import check_target
from domain.catalogue import Catalogue, catalogue
from domain.default_space import job_space, low_resolution
from domain.errors import Invalid
from domain.fidelity import check_fidelity
from domain.job import SOURCE_REF, Budget, JobSpec, Teacher, default_folds, default_objective
from domain.presets import PRESETS, Preset
from domain.recipe import SLOTS, Recipe
from domain.sampler import check_sampler, choose
from domain.space import Space
from domain.teaching import fixed_trials, teacher_values
from store.tables import DatasetRow


def resolve(session: Session, workspace_id: str, asked: JobCreate, *, pool_history: bool = False) -> JobSpec:
    """The stored form of a request. NotFound for what is not there, Conflict for what is not ready, Invalid for what
    cannot be done, each saying what to change. What it refers to is kept from being deleted until the commit."""
    if asked.learn_from == "installation" and not pool_history:
        detail = (
            "this installation keeps the histories of its workspaces apart (GRAFT_POOL_HISTORY); "
            "write learn_from: workspace"
        )
        raise Invalid("history_not_pooled", detail)
    facts, chosen = catalogue(), PRESETS[asked.preset]
    dataset = ready_dataset(session, workspace_id, asked.dataset_id)
    per_split = (dataset.summary or {}).get("statistics", {}).get("per_split", {})
    n_train, n_val = int(per_split.get("train", 0)), int(per_split.get("val", 0))
    facts.task(dataset.task)
    refs = list(dict.fromkeys(asked.sources or _default_sources(facts, chosen)))
    sources = tuple(find_source(session, workspace_id, ref, facts) for ref in refs)
    teacher = None if asked.teacher is None else _teacher(session, workspace_id, asked, dataset, n_train)
    related = asked.source_dataset_id
    source_dataset_id = None if related is None else source_dataset(session, workspace_id, related, dataset)
    space = job_space(
        dataset.task, sources, facts, n_train=n_train, has_teacher=teacher is not None,
        has_source_data=source_dataset_id is not None, overrides=_plain(asked.space), preset=asked.preset,
    )  # fmt: skip
    spec = JobSpec(
        task=dataset.task, sources=sources, teacher=teacher, source_dataset_id=source_dataset_id, space=space,
        chosen=tuple(asked.space), preset=asked.preset, budget=_budget(asked, chosen),
        objectives=objectives_of(asked, n_val), limits=limits_of(asked),
        n_folds=asked.n_folds or chosen.n_folds or default_folds(n_val), pruner=asked.pruner or chosen.pruner,
        fidelity=asked.fidelity or None,
        anchors=asked.anchors, parallel=asked.parallel, keep_top=asked.keep_top, seed=asked.seed,
        screen=asked.screen, learn_from=asked.learn_from,
        combine=chosen.combine if asked.combine is None else asked.combine,
        confirm=chosen.confirm if asked.confirm is None else asked.confirm or None,
    )  # fmt: skip
    check_measurable(session, spec)
    spec = _sampled(legal_spec(spec, facts, asked.space), asked.sampler)
    if asked.fidelity is None and chosen.low_resolution and len(spec.objectives) == 1:
        spec = spec.model_copy(update={"fidelity": low_resolution(spec, facts)})
    _check_budget(spec, facts)
    _check_pruner(spec)
    check_fidelity(spec, facts, (dataset.summary or {}).get("statistics", {}).get("per_class", {}))
    return spec


def _budget(asked: JobCreate, chosen: Preset) -> Budget:
    """The budget of the request; the preset's ends where it names none, such as a target alone."""
    given = asked.budget.model_dump(exclude_none=True) if asked.budget else {}
    if not {"trials", "wall_s", "device_s"} & given.keys():
        given = chosen.budget.model_dump(exclude_none=True) | given
    return Budget.model_validate(given)


def _sampled(spec: JobSpec, sampler: str) -> JobSpec:
    """The job with its sampler, chosen for it where none was asked for."""
    n_objectives, why = len(spec.objectives), ""
    if sampler == "auto":
        sampler, why = choose(spec.space, n_trials=spec.budget.trials, n_objectives=n_objectives)
    check_sampler(sampler, spec.space, n_objectives=n_objectives)
    return spec.model_copy(update={"sampler": sampler, "sampler_why": why})


def default_spec(facts: Catalogue, *, n_train: int = 1000, n_val: int = 200) -> JobSpec:
    """What a job gets that names a dataset of this size, ten trials and nothing else."""
    task = facts.tasks[0].name
    sources = tuple(shared_source(ref, facts) for ref in _default_sources(facts, PRESETS["balanced"]))
    space = job_space(task, sources, facts, n_train=n_train, has_teacher=False)
    spec = JobSpec(
        task=task, sources=sources, space=space, budget=Budget(trials=10), objectives=(default_objective(n_val),),
        n_folds=default_folds(n_val),
    )  # fmt: skip
    return legal_spec(spec, facts, ())


def _default_sources(facts: Catalogue, chosen: Preset) -> Sequence[str]:
    published = {f"torchvision:{backbone.name}" for backbone in facts.backbones if backbone.weights}
    found = [ref for ref in chosen.sources if ref in published]
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
        return job_space(
            dataset.task, (source,), facts, n_train=n_train, has_teacher=False, overrides=overrides, preset=asked.preset
        )

    own: dict[str, Any] = {}  # what the job has fixed holds for its teacher too, where that network can take it
    usual = facts.backbone(source.backbone).resolutions  # it looks at pictures of its own size
    for path, value in _plain(asked.space).items():
        if path == "data.resolution" and value not in usual:
            continue
        if path != "source" and path.partition(".")[0] not in SLOTS:
            with suppress(Invalid):
                space_with({path: value})
                own[path] = value
    alone = JobSpec(
        task=dataset.task, sources=(source,), space=space_with(own), budget=Budget(trials=1),
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
    """A target that can be reached. A teacher that the job trains itself is worth nothing if no trial is left to learn
    from it."""
    check_target(spec.budget, spec.objective)
    if spec.teacher is None or not spec.teacher.trained_here or spec.budget.trials is None:
        return
    first = [name for name, _ in fixed_trials(spec, facts)]
    if spec.budget.trials <= len(first):
        detail = (
            f"{spec.budget.trials} trials end before any learns from the teacher: {', '.join(first)} come first; "
            f"give at least {len(first) + 1}"
        )
        raise Invalid("budget_too_small_for_teacher", detail, least=len(first) + 1)


def _check_pruner(spec: JobSpec) -> None:
    """Three folds that are all worse are the least that says anything: search/pruners/wilcoxon.py."""
    if spec.pruner == "wilcoxon" and spec.n_folds < 3:
        detail = f"pruner wilcoxon compares folds, and this job has {spec.n_folds}: ask for n_folds 3 to 5, or another"
        raise Invalid("pruner_needs_folds", detail, n_folds=spec.n_folds)


def _plain(space: dict[str, Any]) -> dict[str, Any]:
    """Changes as `Space.changed` takes them."""
    return {
        path: value.model_dump(exclude_none=True) if isinstance(value, Bounds) else value
        for path, value in space.items()
    }
