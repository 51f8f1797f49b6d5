import pytest
from store.settings import Settings
from tests.unit.api.conftest import house, bell
@pytest.fixture
def settings(postgres_url, tmp_path):
    return Settings(home=tmp_path, min_free_bytes=0, max_upload_bytes=8 * 1024 * 1024, database_url=postgres_url)
from tests.unit.api.test_jobs import *
from tests.unit.api.test_workspaces import *
from tests.unit.api.test_uploads import *
from tests.unit.api.test_datasets import *
from tests.unit.api.test_keys import *
from tests.unit.api.test_events import *
from tests.unit.api.test_health import test_metrics_count_by_route_and_state, test_alive_and_ready_need_no_key
from tests.unit.api.test_submit import test_refusals as r2, test_a_finished_job_is_a_source
