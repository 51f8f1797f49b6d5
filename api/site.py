"""What a running API owns: settings, engine, blobs, doorbell. Built once by the edge, handed to routes as a value."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import anyio
from fastapi import Depends, Request
from sqlalchemy import Engine

from api.metrics import Metrics
from domain.ports import BlobStore, Doorbell
from store.migrate import is_current
from store.settings import Settings

MAX_STREAMS = 32  # uploads that write at once; each holds one thread of its own pool while it waits for bytes


@dataclass(frozen=True, slots=True)
class Site:
    """One installation as this process sees it."""

    settings: Settings
    engine: Engine
    blobs: BlobStore
    doorbell: Doorbell
    metrics: Metrics
    uploads: Path  # partial uploads
    stopping: threading.Event = field(default_factory=threading.Event)  # the server is told to end: close the streams
    closing: threading.Event = field(default_factory=threading.Event)  # it ends now: break off what still comes in
    migrated: threading.Event = field(default_factory=threading.Event)  # the database was seen with every table
    stream_slots: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAX_STREAMS))

    def is_migrated(self) -> bool:
        """Whether the database has the tables of this version; asked until it once had."""
        if not self.migrated.is_set() and is_current(self.engine):
            self.migrated.set()
        return self.migrated.is_set()


def site_of(request: Request) -> Site:
    """The site of the application that received the request."""
    site = request.app.state.site
    assert isinstance(site, Site)
    return site


SiteDep = Annotated[Site, Depends(site_of)]
