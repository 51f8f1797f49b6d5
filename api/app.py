"""The application: one installation's settings in, an ASGI application out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware.cors import CORSMiddleware

from api import problems, tus
from api.metrics import Metrics
from api.middleware import Edge
from api.openapi import describe
from api.routes import datasets, downloads, events, health, jobs, keys, methods, sources, trials, uploads
from api.routes.health import version_of
from api.site import Site
from domain.errors import GraftError
from store.blobs import open_blobs
from store.keys import ensure_first_key
from store.migrate import migrate
from store.queue import open_doorbell
from store.session import make_engine, transaction
from store.settings import Settings
from store.uploads import unlock_all

log = logging.getLogger("graft.api")

EXPIRE_EVERY_S = 600.0
RETRY_S = 5.0
_EXPOSED = (
    "Location", "ETag", "Content-Range", "X-Checksum-Sha256", "Graft-Dataset-Id", "Idempotent-Replayed", "X-Request-Id",
    "Retry-After", "Tus-Resumable", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm",
    "Upload-Offset", "Upload-Length", "Upload-Expires", "Upload-Metadata",
)  # fmt: skip


def create_app(settings: Settings) -> FastAPI:
    """The HTTP interface of the installation that `settings` describe. Nothing is touched before it starts."""
    site = open_site(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if settings.database_url is None:
            await asyncio.to_thread(begin_alone, site)
        ending = asyncio.Event()
        caring = asyncio.create_task(_care(site, ending))
        yield
        site.stopping.set()
        ending.set()
        await caring  # cancelled, it would leave its thread behind with a connection
        site.engine.dispose()

    app = FastAPIOffline(  # its pages load nothing from elsewhere
        title="Graft", version=version_of(), summary="Transfer learning as a service", lifespan=lifespan,
        redoc_url=None, generate_unique_id_function=_operation_id, redirect_slashes=False,
        description="Upload a small labelled dataset, search how best to transfer to it, download the result. Every "
        "error is `application/problem+json` with a stable `code`.",
    )  # fmt: skip
    app.state.site = site
    for module in (datasets, uploads, sources, jobs, trials, events, downloads, methods, keys, health):
        app.include_router(module.router)
    problems.install(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"],
            expose_headers=list(_EXPOSED),
        )  # fmt: skip
    app.add_middleware(Edge, metrics=site.metrics, allowed_hosts=settings.allowed_hosts)
    describe(app)
    return app


def open_site(settings: Settings) -> Site:
    """What the settings name, opened but not yet asked."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = settings.home / "uploads"
    folder.mkdir(exist_ok=True, mode=0o700)
    engine = make_engine(settings.database)
    return Site(
        settings=settings, engine=engine, blobs=open_blobs(settings), doorbell=open_doorbell(settings),
        metrics=Metrics(engine, alive_s=settings.lease_s), uploads=folder,
    )  # fmt: skip


def begin_alone(site: Site) -> None:
    """The start of the only server of an installation: its tables are brought up to date, old locks are nobody's."""
    migrate(site.settings.database)
    with transaction(site.engine) as session:
        unlock_all(session)
    ensure_first_key(site.engine, site.settings)


async def _care(site: Site, ending: asyncio.Event) -> None:
    """Until the end: see to the first key, then every few minutes to uploads that nobody goes on with."""
    has_key = False
    while not ending.is_set():
        if has_key:
            await asyncio.to_thread(_attempt, "expire uploads", lambda: tus.expire(site))
        else:
            has_key = await asyncio.to_thread(
                _attempt, "make the first key", lambda: ensure_first_key(site.engine, site.settings)
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), EXPIRE_EVERY_S if has_key else RETRY_S)


def _attempt(what: str, work: object) -> bool:
    """True if it went well; a server that is away is no reason to stop."""
    assert callable(work)
    try:
        work()
    except (GraftError, SQLAlchemyError, OSError) as error:
        log.warning("could not %s yet: %s", what, type(error).__name__)
        return False
    return True


def _operation_id(route: APIRoute) -> str:
    return route.name
