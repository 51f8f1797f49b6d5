"""An API over SQLite and local blobs, a workspace with a key, and the bell that workers would hear."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.site import Site
from domain.ids import new_id
from store.keys import create_key
from store.queue import listen_local
from store.session import transaction
from store.settings import Settings
from store.tables import WorkspaceRow
from tests.house import House


@pytest.fixture
def settings(sqlite_url: str, tmp_path: Path) -> Settings:
    """Embedded, its database migrated already."""
    return Settings(home=tmp_path, min_free_bytes=0, max_upload_bytes=8 * 1024 * 1024)


@pytest.fixture
def house(settings: Settings) -> Iterator[House]:
    app = create_app(settings)
    with TestClient(app) as client:
        site: Site = app.state.site
        with transaction(site.engine) as session:
            row = WorkspaceRow(id=new_id("workspace"), name="here")
            session.add(row)
            session.flush()
            workspace_id = row.id
            _, key = create_key(session, workspace_id, "first")
        yield House(site, client, workspace_id, key)


@pytest.fixture
def bell(house: House) -> Iterator[Any]:
    """What the handlers hear."""
    with listen_local(house.site.settings) as listener:
        yield listener
