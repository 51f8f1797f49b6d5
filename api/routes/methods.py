"""Methods: the catalogue, with the space that is searched when a job says nothing."""

from typing import get_args

from fastapi import APIRouter

from api.auth import CallerDep
from api.schemas.job import JobCreate, PrunerName
from api.schemas.method import Methods
from api.schemas.problem import problems
from api.submit import default_spec
from domain.catalogue import catalogue
from domain.default_space import anchors
from domain.recipe import SLOTS

router = APIRouter(prefix="/v1/methods", tags=["methods"])


@router.get("", summary="Show the catalogue", response_model=Methods, responses=problems(401, 503))
def get_methods(caller: CallerDep) -> Methods:  # noqa: ARG001 - for those with a key
    """Tasks, backbones and parts with their ranges; the default space is that of the default sources on 1000 items."""
    facts = catalogue()
    spec = default_spec(facts)
    return Methods(
        tasks=list(facts.tasks), backbones=list(facts.backbones), parts=list(facts.parts), slots=list(SLOTS),
        samplers=list(get_args(JobCreate.model_fields["sampler"].annotation)),
        pruners=list(get_args(PrunerName)), default_space=spec.space,
        anchors=[name for name, _ in anchors(spec)],
    )  # fmt: skip
