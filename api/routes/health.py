"""Is it alive, is it ready, how is it doing. Without a key, outside /v1."""

import logging
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Response
from sqlalchemy.exc import SQLAlchemyError

from api.schemas.health import Live, Ready
from api.site import Site, SiteDep
from domain.errors import GraftError
from store.counts import workers_alive
from store.session import reading

router = APIRouter(tags=["health"])
log = logging.getLogger("graft.api")


@router.get("/healthz", summary="Is the process alive", response_model=Live)
def live() -> Live:
    """Answers as long as the process does; asks nobody else."""
    return Live(version=version_of())


@router.get(
    "/readyz", summary="Can it serve", response_model=Ready,
    responses={503: {"model": Ready, "description": "Something behind it does not answer"}},
)  # fmt: skip
def ready(site: SiteDep, response: Response) -> Ready:
    """Asks the database, the blob store and the broker."""
    workers, database, migrated = 0, True, True
    try:
        with reading(site.engine) as session:
            session.connection()
        migrated = site.is_migrated()
        with reading(site.engine) as session:
            workers = workers_alive(session, site.settings.lease_s) if migrated else 0
    except (GraftError, SQLAlchemyError) as error:
        log.warning("not ready: %s", error)
        database, migrated = False, False
    blobs, queue = _blobs(site), site.doorbell.check()
    found = Ready(
        ready=database and migrated and blobs and queue, database=database, migrated=migrated, blobs=blobs, queue=queue,
        workers=workers,
    )  # fmt: skip
    response.status_code = 200 if found.ready else 503
    return found


@router.get(
    "/metrics", summary="Counters for Prometheus", response_class=Response,
    responses={200: {"description": "Prometheus text", "content": {"text/plain": {
        "schema": {"type": "string"}, "example": 'graft_jobs{state="RUNNING"} 1.0\n'}}}},
)  # fmt: skip
def metrics(site: SiteDep) -> Response:
    """Requests and their times by route, jobs and trials by state, the oldest waiting lot, workers alive."""
    return Response(site.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def version_of() -> str:
    """The version of this installation; 0 where it runs from a bare folder."""
    try:
        return version("graft-automl")
    except PackageNotFoundError:
        return "0"


def _blobs(site: Site) -> bool:
    try:
        site.blobs.check()
    except GraftError as error:
        log.warning("not ready: %s", error)
        return False
    return True
