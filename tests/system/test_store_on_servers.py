"""What only real servers and several processes can show: races for rows, lost servers, messages on a real broker."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine, func, select, text, update

from domain.errors import Conflict, Unavailable
from domain.ids import new_id
from store.blob_rows import add_blob, drop_refs
from store.datasets import delete_dataset, get_dataset
from store.events import since, tell
from store.jobs import create_job
from store.keys import ensure_first_key
from store.leases import claim, due, take_turn
from store.migrate import check, migrate
from store.queue import CeleryDoorbell, open_doorbell
from store.session import make_engine, reading, transaction
from store.settings import Settings
from store.tables import ApiKeyRow, JobRow, LotRow
from store.trials import NewTrial, insert_lot, trials_of
from tests.rows import INFO, a_spec, add_dataset, add_job, add_lot, add_workspace
from tests.servers import PostgresServer, RedisServer, fresh_database, wait_until

ROOT = Path(__file__).parents[2]
N = 8  # threads at once

CLAIMER = """
import json, sys
from sqlalchemy import select
from store.leases import claim
from store.session import make_engine, reading, transaction
from store.tables import LotRow
url, owner = sys.argv[1:]
engine = make_engine(url)
with reading(engine) as session:
    lots = list(session.scalars(select(LotRow.id).order_by(LotRow.id)))
print("ready", flush=True)
sys.stdin.readline()
won = []
for lot_id in lots:
    with transaction(engine) as session:
        fence = claim(session, LotRow, lot_id, state_from="WAITING", state_to="RUNNING", owner=owner, lease_s=60,
                      max_attempts=3)
    if fence is not None:
        won.append(lot_id)
print(json.dumps(won))
"""

WORKER = """
import sys
from pathlib import Path
from store.queue import celery_app
from store.settings import Settings
app = celery_app(Settings(home=Path(sys.argv[2]), redis_url=sys.argv[1]))
heard = Path(sys.argv[2]) / "heard"

@app.task(name="graft.advance")
def advance(row_id):
    with heard.open("a") as file:
        print(row_id, file=file)

app.worker_main(["worker", "--pool=solo", "--without-mingle", "--without-gossip", "-Q", "control", "-l", "warning"])
"""


@pytest.fixture
def job_id(engine: Engine) -> str:
    with transaction(engine) as session:
        return add_job(session, add_dataset(session, add_workspace(session)), "RUNNING").id


def at_once(action: Callable[[int], object]) -> list[object]:
    """What `N` threads get that begin together."""
    barrier = threading.Barrier(N)

    def one(n: int) -> object:
        barrier.wait()
        return action(n)

    with ThreadPoolExecutor(N) as pool:
        return list(pool.map(one, range(N)))


def test_processes_that_claim_at_once_get_every_lot_exactly_once(
    engine: Engine, database_url: str, job_id: str
) -> None:
    with transaction(engine) as session:
        job = session.get_one(JobRow, job_id)
        lots = [add_lot(session, job, n).id for n in range(40)]
    claimers = [
        subprocess.Popen([sys.executable, "-c", CLAIMER, database_url, f"w{n}"], cwd=ROOT, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for n in range(4)
    ]  # fmt: skip
    for claimer in claimers:
        assert claimer.stdout is not None
        assert claimer.stdout.readline() == "ready\n"
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    won = [json.loads(claimer.communicate(timeout=60)[0]) for claimer in claimers]
    assert sorted(lot_id for each in won for lot_id in each) == lots
    with reading(engine) as session:
        assert set(session.execute(select(LotRow.state, LotRow.fence, LotRow.attempt))) == {("RUNNING", 1, 1)}


def test_the_same_message_delivered_many_times_at_once_is_one_claim(engine: Engine, job_id: str) -> None:
    with transaction(engine) as session:
        lot_id = add_lot(session, session.get_one(JobRow, job_id), 0).id

    def deliver(n: int) -> int | None:
        with transaction(engine) as session:
            return claim(session, LotRow, lot_id, state_from="WAITING", state_to="RUNNING", owner=f"w{n}", lease_s=60,
                         max_attempts=3)  # fmt: skip

    assert sorted(at_once(deliver), key=str) == [1] + [None] * (N - 1)


def test_events_have_no_gap_and_become_visible_in_order(engine: Engine, job_id: str) -> None:
    def write(n: int) -> None:
        for k in range(10):
            with transaction(engine) as session:
                tell(session, job_id, "job.log", {"n": n, "k": k})

    with reading(engine) as session:
        first = last = session.get_one(JobRow, job_id).n_events
    writers = [threading.Thread(target=write, args=(n,)) for n in range(N)]
    for writer in writers:
        writer.start()
    bodies = []
    while last < first + 10 * N:  # a reader that follows, as SSE does, never has to go back
        still_writing = any(writer.is_alive() for writer in writers)
        with reading(engine) as session:
            for event in since(session, job_id, last):
                assert event.seq == last + 1
                last = event.seq
                bodies.append(event.body)
        assert still_writing or last == first + 10 * N
    for writer in writers:
        writer.join()
    for n in range(N):
        assert [body["k"] for body in bodies if body["n"] == n] == list(range(10))


def test_requests_with_one_idempotency_key_at_once_create_one_job(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))

    def submit(_: int) -> tuple[str, bool]:
        def build() -> JobRow:
            return JobRow(id=new_id("job"), workspace_id=dataset.workspace_id, name="a", dataset_id=dataset.id,
                          state="WAITING", spec=a_spec())  # fmt: skip

        with transaction(engine) as session:
            job, created = create_job(session, dataset.workspace_id, "key", "0" * 64, build)
            return job.id, created

    answers: list[tuple[str, bool]] = at_once(submit)  # type: ignore[assignment]
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == 1


def test_searchers_that_propose_the_same_number_at_once_insert_one_trial(engine: Engine, job_id: str) -> None:
    def propose(n: int) -> bool:
        with transaction(engine) as session:
            return insert_lot(session, job_id, [NewTrial(0, {"from": n}, {})]) is not None

    inserted = at_once(propose)
    assert sum(map(bool, inserted)) == 1
    with reading(engine) as session:
        assert [t.values["from"] for t in trials_of(session, job_id)] == [inserted.index(True)]


def test_one_sweep_at_a_time_and_nothing_rung_twice(engine: Engine, job_id: str) -> None:
    with transaction(engine) as session:
        add_lot(session, session.get_one(JobRow, job_id), 0)
        session.execute(update(LotRow).values(woken_at=0.0))

    def turn(n: int) -> bool:
        with transaction(engine) as session:
            return take_turn(session, "sweep", f"w{n}", 60)

    def ring(_: int) -> int:
        with transaction(engine) as session:
            return len(due(session, LotRow, ["WAITING"], quiet_s=30))

    assert sorted(map(bool, at_once(turn))) == [False] * (N - 1) + [True]
    assert sum(map(int, at_once(ring))) == 1  # type: ignore[arg-type]


def test_processes_that_start_at_once_agree_on_the_first_key(engine: Engine, tmp_path: Path) -> None:
    keys = set(at_once(lambda _: ensure_first_key(engine, Settings(home=tmp_path / "home"))))
    assert len(keys) == 1
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(ApiKeyRow)) == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_migrate_at_once_queue(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path}/new.db"
        if kind == "postgresql":
            url = stack.enter_context(fresh_database(request.getfixturevalue("postgres_admin_url")))
        environment = {**os.environ, "GRAFT_DATABASE_URL": url}
        command = [sys.executable, "-m", "store.migrate"]
        runs = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) for _ in range(4)]
        errors = [run.communicate(timeout=120)[1] for run in runs]
        assert [run.returncode for run in runs] == [0] * 4, errors
        check(url)


def test_the_last_two_owners_of_a_blob_let_go_at_once(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        for n in range(N):
            add_blob(session, workspace_id, "shared", INFO, f"owner{n}")

    def let_go(n: int) -> list[str]:
        with transaction(engine) as session:
            return drop_refs(session, f"owner{n}")

    assert sorted(map(str, at_once(let_go))) == sorted(["['shared']"] + ["[]"] * (N - 1))


def test_a_dataset_is_not_deleted_under_a_job_that_is_being_created(postgres_engine: Engine) -> None:
    engine = postgres_engine
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
    refused: list[Conflict] = []

    def delete() -> None:
        try:
            with transaction(engine) as session:
                delete_dataset(session, dataset.workspace_id, dataset.id)
        except Conflict as error:
            refused.append(error)

    def someone_waits() -> bool:
        with engine.connect() as connection:
            return bool(connection.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))

    deletion = threading.Thread(target=delete)
    with transaction(engine) as session:
        job = add_job(session, get_dataset(session, dataset.workspace_id, dataset.id, share=True))
        deletion.start()
        assert wait_until(someone_waits)
    deletion.join()
    assert [error.facts["needed_by"] for error in refused] == [[job.id]]


def test_a_postgres_that_is_killed_is_unavailable_and_comes_back_with_all_it_promised(
    postgres_server: PostgresServer,
) -> None:
    migrate(postgres_server.url())
    engine = make_engine(postgres_server.url())
    with transaction(engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)), "RUNNING")

    def write_while_it_dies() -> None:
        with transaction(engine) as session:
            tell(session, job.id, "job.log", {})
            postgres_server.kill()

    with pytest.raises(Unavailable):
        write_while_it_dies()
    with pytest.raises(Unavailable), reading(engine) as session:
        since(session, job.id)
    postgres_server.start()
    with transaction(engine) as session:  # the pool notices that its connections are dead
        tell(session, job.id, "job.log", {})
    with reading(engine) as session:
        told = [(event.seq, event.kind) for event in since(session, job.id)]
    assert told == [(1, "job.state"), (2, "job.state"), (3, "job.state"), (4, "job.log")]
    engine.dispose()


def test_a_message_is_json_and_carries_an_id_alone(tmp_path: Path, redis_url: str) -> None:
    bell = open_doorbell(Settings(home=tmp_path, redis_url=redis_url))
    assert isinstance(bell, CeleryDoorbell)
    assert bell.check()
    bell.wake("run_lot", "lot_1")
    client = redis.Redis.from_url(redis_url)
    message = json.loads(client.lpop("trials"))  # type: ignore[arg-type]
    client.close()
    assert message["headers"]["task"] == "graft.run_lot"
    assert message["headers"]["ignore_result"] is True
    assert message["content-type"] == "application/json"
    assert message["properties"]["body_encoding"] == "base64"
    assert json.loads(base64.b64decode(message["body"]))[:2] == [["lot_1"], {}]


def test_a_celery_worker_hears_the_bell_also_after_the_broker_has_died(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    heard = tmp_path / "heard"
    bell = open_doorbell(Settings(home=tmp_path, redis_url=redis_server.url))
    bell.wake("advance", "job_0")  # before any worker is there
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, redis_server.url, str(tmp_path)], cwd=ROOT, stdout=log, stderr=log
        )

    def hears(row_id: str) -> bool:
        return heard.exists() and row_id in heard.read_text().split()

    try:
        assert wait_until(lambda: hears("job_0"), worker), (tmp_path / "log").read_text()
        redis_server.kill()
        bell.wake("advance", "job_1")  # lost, and no error
        redis_server.start()

        def ring_again() -> bool:
            bell.wake("advance", "job_2")
            return hears("job_2")

        assert wait_until(ring_again, worker, for_s=60), (tmp_path / "log").read_text()
        assert not hears("job_1")
    finally:
        worker.kill()
        worker.wait()
