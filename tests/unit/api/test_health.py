import shutil

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from store.session import transaction
from store.settings import Settings
from store.tables import LotRow
from store.workers import seen
from tests.house import House, check_problem


def test_alive_and_ready_need_no_key(house: House) -> None:
    assert house.client.get("/healthz").json()["status"] == "ok"
    with transaction(house.site.engine) as session:
        seen(session, "worker-1", ["trials"], {})
    body = house.client.get("/readyz").json()
    assert body == {"ready": True, "database": True, "migrated": True, "blobs": True, "queue": True, "workers": 1}


def test_not_ready_without_blobs(house: House) -> None:
    shutil.rmtree(house.site.blobs.folder)
    answer = house.client.get("/readyz")
    assert (answer.status_code, answer.json()["blobs"], answer.json()["database"]) == (503, False, True)


@pytest.fixture
def cut_off(settings: Settings) -> TestClient:
    """An API whose database and broker cannot be reached."""
    return TestClient(
        create_app(
            settings.model_copy(
                update={"database_url": "postgresql://nobody@127.0.0.1:1/none", "redis_url": "redis://127.0.0.1:1/0"}
            )
        )
    )


def test_a_database_that_is_away_is_503_and_try_again(cut_off: TestClient) -> None:
    key = {"Authorization": "Bearer graft_aaaaaaaaaaaa." + "A" * 43}
    for path in ("/v1/jobs", "/v1/workspace", "/v1/jobs/job_0123/events"):
        answer = cut_off.get(path, headers=key)
        check_problem(answer, 503, "database_unavailable")
        assert int(answer.headers["retry-after"]) > 0


def test_the_process_lives_while_others_do_not(cut_off: TestClient) -> None:
    with cut_off:  # starting does not need them either
        assert cut_off.get("/healthz").status_code == 200
        answer = cut_off.get("/readyz")
        assert (answer.status_code, answer.json()["database"], answer.json()["queue"]) == (503, False, False)
        assert "graft_database_up 0.0" in cut_off.get("/metrics").text


def test_metrics_count_by_route_and_state(house: House) -> None:
    job = house.add_job("RUNNING")
    house.ask("GET", f"/v1/jobs/{job}")
    house.client.get("/nowhere/at/all")
    with transaction(house.site.engine) as session:
        session.add(LotRow(id="lot_1", workspace_id=house.workspace_id, job_id=job, state="WAITING", created_at=1.0))
    lines = house.client.get("/metrics").text.splitlines()
    assert 'graft_jobs{state="RUNNING"} 1.0' in lines
    assert 'graft_http_requests_total{method="GET",route="/v1/jobs/{job}",status="200"} 1.0' in lines
    assert 'graft_http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in lines
    age = next(float(line.split()[1]) for line in lines if line.startswith("graft_queue_age_seconds "))
    assert age > 1e9  # it waits since 1970
    assert job not in "\n".join(lines)
