from collections.abc import Iterator
from pathlib import Path

import pytest

from graft import Client
from tests.system.digits import write_digits
from tests.system.installation import Installation, installed


@pytest.fixture
def distributed(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Installation]:
    """Postgres and Redis behind an API that answers; workers are for the test to start."""
    with installed(tmp_path / "home", GRAFT_DATABASE_URL=postgres_url, GRAFT_REDIS_URL=redis_url) as installation:
        installation.start_api()
        yield installation


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of an embedded installation with one worker, which the tests of a module share."""
    with installed(tmp_path_factory.mktemp("embedded") / "home") as installation:
        installation.start_api()
        installation.start_worker()
        with installation.client() as client:
            yield client


@pytest.fixture(scope="session")
def two_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixes and eights, 60 of each."""
    return write_digits(tmp_path_factory.mktemp("digits") / "digits.zip", [6, 8], per_class=60)
