"""What every handler needs of the world, opened once per process."""

import os
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from domain.ports import BlobStore, Doorbell
from store.blobs import open_blobs
from store.queue import open_doorbell
from store.session import make_engine, reading, transaction
from store.settings import Settings
from worker.crew import Crew


@dataclass
class Context:
    settings: Settings
    engine: Engine
    blobs: BlobStore
    doorbell: Doorbell
    worker_id: str
    crew: Crew  # the warm trial process of this worker
    stopping: threading.Event = field(default_factory=threading.Event)
    reading_ahead: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with transaction(self.engine) as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with reading(self.engine) as session:
            yield session

    @property
    def cache(self) -> Path:
        return self.settings.cache


def greeting(context: Context, queues: Sequence[str]) -> str:
    """What a worker of trials says at its start: the device, precision and limits that it found."""
    facts = context.crew.facts
    said = ", ".join(f"{name} {facts[name]}" for name in ("device", "device_name", "precision", "n_threads"))
    memory = int(facts["memory_bytes"]) / 2**30
    return f"graft worker {context.worker_id}: {said}, {memory:.1f} GiB, queues {','.join(queues)}"


def open_context(settings: Settings) -> Context:
    return Context(
        settings=settings,
        engine=make_engine(settings.database),
        blobs=open_blobs(settings),
        doorbell=open_doorbell(settings),
        worker_id=f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(3)}",
        crew=Crew(settings),
    )
