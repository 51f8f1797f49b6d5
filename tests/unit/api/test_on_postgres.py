"""What SQLite forgives and Postgres does not: the same tests once more, over a real server."""

from pathlib import Path

import pytest

from store.settings import Settings
from tests.unit.api.test_events import test_stream_and_polling_tell_the_same as test_events  # noqa: F401
from tests.unit.api.test_jobs import test_cursors_of_trials_that_were_tampered_with as test_trial_cursors  # noqa: F401
from tests.unit.api.test_jobs import test_cursors_that_were_tampered_with as test_cursors  # noqa: F401
from tests.unit.api.test_jobs import test_delete_takes_everything_of_a_finished_job as test_delete  # noqa: F401
from tests.unit.api.test_jobs import test_idempotency_key_finds_the_same_job as test_idempotency  # noqa: F401
from tests.unit.api.test_jobs import test_progress_counts_trials as test_progress  # noqa: F401
from tests.unit.api.test_uploads import test_parts_make_a_whole as test_upload  # noqa: F401
from tests.unit.api.test_workspaces import test_another_workspace_sees_nothing as test_workspaces  # noqa: F401


@pytest.fixture
def settings(postgres_url: str, tmp_path: Path) -> Settings:
    """As everywhere here, but on Postgres."""
    return Settings(home=tmp_path, min_free_bytes=0, max_upload_bytes=8 * 1024 * 1024, database_url=postgres_url)
