"""Private PostgreSQL and Redis for the measurements that want real ones; the tests' own, with syncing switched on."""

from collections.abc import Iterator
from contextlib import contextmanager

from store.migrate import migrate
from tests.servers import PostgresServer, RedisServer


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty migrated database on a server that syncs every commit, as a real one would."""
    server = PostgresServer(fsync=True)
    try:
        server.start()
        migrate(server.url())
        yield server.url()
    finally:
        server.remove()


@contextmanager
def redis() -> Iterator[str]:
    server = RedisServer()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()
