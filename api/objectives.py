"""What a job ranks by and the limits of its pick, as asked for: every refusal says what to change."""

from collections import Counter

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.references import classes_of
from api.schemas.job import JobCreate
from domain.choice import to_measure
from domain.errors import Invalid
from domain.job import MAX_OBJECTIVES, RANKING, JobSpec, Limit, Objective, ResolvedSource, default_objective
from store.tables import DatasetRow


def objectives_of(asked: JobCreate, n_val: int) -> tuple[Objective, ...]:
    """The objectives, the first of which ranks; by the size of `val` where the request names none."""
    if asked.objective and asked.objectives:
        raise Invalid("bad_objectives", "give objective or objectives, not both; the first of objectives ranks")
    names = list(asked.objectives or ([asked.objective] if asked.objective else []))
    if not names:
        return (default_objective(n_val),)
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise Invalid("bad_objectives", f"{twice[0]} is named twice among the objectives; name it once")
    if len(names) > MAX_OBJECTIVES:
        detail = f"{len(names)} objectives; at most {MAX_OBJECTIVES} make a front that one can choose from"
        raise Invalid("bad_objectives", f"{detail}. Turn the others into limits")
    if names[0] not in RANKING:
        detail = f"{names[0]} cannot come first: trials are ranked, and stopped early, by their predictions on val"
        raise Invalid("bad_objectives", f"{detail}. Put one of {', '.join(RANKING)} first", legal=list(RANKING))
    return tuple(Objective(name=name) for name in names)


def limits_of(asked: JobCreate) -> tuple[Limit, ...]:
    """The limits; Invalid("bad_limit") names the one that makes no sense."""
    found = []
    for name, bound in asked.limits.items():
        try:
            found.append(Limit(objective=name, at_most=bound.at_most, at_least=bound.at_least))
        except ValidationError as error:
            why = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise Invalid("bad_limit", f"limits.{name}: {why}", objective=name) from None
    return tuple(found)


def check_measurable(session: Session, spec: JobSpec) -> None:
    """What is left of the source can only be asked of sources that bring a head, about classes that it knows."""
    if "source_accuracy" not in to_measure(spec.objectives, spec.limits):
        return
    if spec.source_dataset_id is None:
        detail = "source_accuracy needs images of the source's own classes: name their dataset as source_dataset_id"
        raise Invalid("source_accuracy_needs_dataset", detail)
    for source in spec.sources:
        if source.n_classes == 0:
            detail = f"source_accuracy needs a source with a linear head of its own, which {source.ref} has not"
            raise Invalid("source_accuracy_needs_head", f"{detail}; leave out one of the two", source=source.ref)
    dataset = session.get_one(DatasetRow, spec.source_dataset_id)
    for source in spec.sources:
        _check_classes(source, tuple(classes_of(dataset)))
    n_test = (dataset.summary or {}).get("statistics", {}).get("per_split", {}).get("test", 0)
    if not n_test:
        detail = f"source_accuracy is measured on the test split of {dataset.id}, which holds no image"
        raise Invalid("source_accuracy_needs_dataset", f"{detail}; name a dataset with one")


def _check_classes(source: ResolvedSource, classes: tuple[str, ...]) -> None:
    """The head's answers are the dataset's classes, one by one."""
    if (source.classes and source.classes != classes) or source.n_classes != len(classes):
        detail = (
            f"source_accuracy compares the head of {source.ref} with the labels of the source dataset: the dataset "
            f"must have its {source.n_classes} classes, in the same order, and has {len(classes)}"
        )
        raise Invalid(
            "source_accuracy_classes_differ", detail, source=list(source.classes)[:100], dataset=list(classes)[:100]
        )
