"""Workers of one job meet in its rows: none waits for what another one is at, and nothing is lost by it. Postgres."""

import threading
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from domain.job import Budget
from store.events import since, tell
from store.jobs import delete_job
from store.leases import hold, lock_name
from store.moves import become
from store.session import reading, transaction
from store.tables import JobRow, LotRow, TrialRow
from store.trials import NewTrial, best_trials, insert_lot, trials_of
from tests.rows import add_dataset, add_job, add_lot, add_workspace
from tests.unit.worker.conftest import Open, Workshop
from worker.advance import advance
from worker.claims import Claimed, claim_lot, claim_next
from worker.lots import _note_if_best


@pytest.fixture
def database_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def impatient(engine: Engine) -> Engine:
    """Whoever has to wait for a lock fails."""
    with engine.begin() as connection:
        database = connection.scalar(text("SELECT current_database()"))
        connection.execute(text(f"ALTER DATABASE \"{database}\" SET lock_timeout = '2s'"))
    engine.dispose()  # connections from now on are impatient
    return engine


def searching(place: Workshop, parallel: int) -> str:
    job_id = place.job(anchors=False, budget=Budget(trials=20), parallel=parallel)
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})  # so that nothing is asked ahead
    advance(place.context, job_id)
    return job_id


def test_who_has_told_something_is_not_waited_for_until_it_commits(impatient: Engine) -> None:
    with transaction(impatient) as session:
        job_id = add_job(session, add_dataset(session, add_workspace(session))).id
    with transaction(impatient) as first:
        tell(first, job_id, "job.log", {"by": "the first"})
        with transaction(impatient) as second:
            tell(second, job_id, "job.log", {"by": "the second"})
    with reading(impatient) as session:
        told = [(event.seq, event.body["by"]) for event in since(session, job_id, 1)]
    assert told == [(2, "the second"), (3, "the first")]


def test_a_lot_that_another_worker_is_claiming_is_passed_over(place: Workshop, impatient: Engine) -> None:
    job_id = searching(place, parallel=2)
    first, second = place.trials(job_id)
    with impatient.begin() as other:
        other.execute(text("SELECT id FROM lots WHERE id = :id FOR UPDATE"), {"id": first.lot_id})
        claimed = claim_next(place.context, job_id)
        assert claimed is not None
        assert claimed.lot_id == second.lot_id
        assert claim_next(place.context, job_id) is None
    claimed = claim_next(place.context, job_id)
    assert claimed is not None
    assert claimed.lot_id == first.lot_id


def test_a_name_is_locked_until_the_end_of_a_transaction(engine: Engine) -> None:
    with reading(engine) as first, reading(engine) as second:
        assert lock_name(first, "a")
        assert not lock_name(second, "a")
        assert lock_name(second, "b")
    with reading(engine) as session:
        assert lock_name(session, "a")


def test_while_one_worker_asks_another_one_does_not(place: Workshop) -> None:
    job_id = place.job(anchors=False, budget=Budget(trials=20), parallel=2)
    with place.context.reading() as asking:
        assert lock_name(asking, f"ask {job_id}")
        advance(place.context, job_id)
        assert place.trials(job_id) == []
    advance(place.context, job_id)
    assert [trial.number for trial in place.trials(job_id)] == list(range(4))  # two places, and two asked ahead


def test_a_worker_without_a_lot_waits_for_the_one_that_asks_and_looks_again(open_workshop: Open) -> None:
    place, other = open_workshop(), open_workshop()
    job_id = place.job(anchors=False, budget=Budget(trials=20), parallel=2)
    found: list[str | None] = []
    with place.context.reading() as asking:
        pid = int(asking.scalar(text("SELECT pg_backend_pid()")) or 0)
        assert lock_name(asking, f"ask {job_id}")
        thread = threading.Thread(target=lambda: found.append(advance(other.context, job_id, take=True)))
        thread.start()
        await_(lambda: blocks_somebody(place.context.engine, pid))
        with place.context.transaction() as session:  # what was asked for meanwhile
            add_lot(session, session.get_one(JobRow, job_id), 0)
    thread.join()
    first, *others = place.trials(job_id)
    assert found == [first.lot_id]
    assert [trial.number for trial in others] == [1, 2, 3]


def test_every_lot_is_rung_for_but_the_one_that_is_taken(place: Workshop) -> None:
    job_id = place.job(anchors=False, budget=Budget(trials=20), parallel=2)
    place.write(JobRow, job_id, woken_at=1.0)  # it was not resumed just now
    mine = advance(place.context, job_id, take=True)
    lots = [trial.lot_id for trial in place.trials(job_id)]
    assert mine == lots[0]
    assert sorted(place.heard()) == sorted(("run_lot", lot_id) for lot_id in lots[1:])
    advance(place.context, job_id)
    assert place.heard() == [], "they were told of"


def test_a_lot_comes_too_late_for_a_job_that_has_ended_meanwhile(engine: Engine) -> None:
    with transaction(engine) as session:
        job_id = add_job(session, add_dataset(session, add_workspace(session)), "RUNNING").id
    with transaction(engine) as late:
        job = late.get_one(JobRow, job_id)
        with transaction(engine) as session:
            become(session, session.get_one(JobRow, job_id), "FINISHING")
        assert job.state == "RUNNING", "as it was read"
        assert insert_lot(late, job_id, [NewTrial(0, {}, {})]) is None
    with reading(engine) as session:
        assert trials_of(session, job_id) == []


def test_a_job_is_deleted_while_the_last_of_it_ends(place: Workshop) -> None:
    """Whoever deletes waits for the lots first, so that neither holds what the other one needs."""
    job_id = searching(place, parallel=2)
    first, _ = place.trials(job_id)
    workspace_id = place.state(job_id).workspace_id
    with place.context.transaction() as session:
        become(session, session.get_one(JobRow, job_id), "CANCELLED")
    failed: list[Exception] = []

    def delete() -> None:
        try:
            with place.context.transaction() as session:
                delete_job(session, workspace_id, job_id)
        except Exception as error:
            failed.append(error)

    with place.context.transaction() as session:
        pid = int(session.scalar(text("SELECT pg_backend_pid()")) or 0)
        session.get_one(LotRow, first.lot_id, with_for_update=True)
        thread = threading.Thread(target=delete)
        thread.start()
        await_(lambda: blocks_somebody(place.context.engine, pid))
        become(session, session.get_one(TrialRow, first.id), "CANCELLED")
    thread.join()
    assert failed == []
    assert place.trials(job_id) == []


def test_of_two_trials_that_end_at_once_the_better_one_is_noted(open_workshop: Open) -> None:
    """Neither sees the other's end yet: each leads in its own eyes."""
    place, other = open_workshop(), open_workshop()
    job_id = searching(place, parallel=2)
    better, worse = (claim_lot(place.context, trial.lot_id) for trial in place.trials(job_id))
    assert better is not None
    assert worse is not None
    pids: list[int] = []
    with place.context.transaction() as session:
        ended(session, better, 0.9)
        thread = threading.Thread(target=end_elsewhere, args=(other, worse, 0.8, pids))
        thread.start()
        await_(lambda: bool(pids) and waits(place.context.engine, pids[0]))
    thread.join()
    with place.context.reading() as session:
        assert [trial.value for trial in best_trials(session, job_id, direction="maximize", limit=2)] == [0.9, 0.8]
        assert session.get_one(JobRow, job_id).best_trial_id == better.trials[0].id
        assert [e.body["value"] for e in since(session, job_id) if e.kind == "job.best"] == [0.9]


def ended(session: Session, claimed: Claimed, value: float) -> None:
    hold(session, LotRow, claimed.lot_id, claimed.fence)
    trial = session.get_one(TrialRow, claimed.trials[0].id)
    become(session, trial, "COMPLETE", value=value)
    _note_if_best(session, claimed, trial)


def end_elsewhere(place: Workshop, claimed: Claimed, value: float, pids: list[int]) -> None:
    with place.context.transaction() as session:
        pids.append(int(session.scalar(text("SELECT pg_backend_pid()")) or 0))
        ended(session, claimed, value)


def waits(engine: Engine, pid: int) -> bool:
    with engine.connect() as connection:
        query = text("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = :pid")
        return bool(connection.scalar(query, {"pid": pid}))


def blocks_somebody(engine: Engine, pid: int) -> bool:
    with engine.connect() as connection:
        query = text("SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE :pid = ANY(pg_blocking_pids(pid)))")
        return bool(connection.scalar(query, {"pid": pid}))


def await_(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
