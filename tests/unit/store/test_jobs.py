from contextlib import suppress
from functools import partial
from itertools import product

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from domain.errors import Conflict, Invalid, NotFound
from domain.ids import new_id
from domain.states import JobState
from store import jobs
from store.blob_rows import add_blob
from store.clock import now
from store.events import since, tell
from store.moves import become
from store.session import reading, transaction
from store.tables import BlobRow, EventRow, JobRow, LotRow, TrialRow
from store.trials import trials_of
from tests.rows import INFO, a_spec, add_dataset, add_job, add_lot, add_workspace

STATES = [str(s) for s in JobState]


def states_told(session: Session, job_id: str) -> list[str]:
    return [e.body["state"] for e in since(session, job_id) if e.kind == "job.state"]


def test_a_foreign_job_is_as_good_as_missing(engine: Engine) -> None:
    with transaction(engine) as session:
        mine, other = add_workspace(session), add_workspace(session)
        job_id = add_job(session, add_dataset(session, mine)).id
    with reading(engine) as session:
        assert jobs.get_job(session, mine, job_id).id == job_id
        errors = []
        for workspace_id, wanted in ((other, job_id), (mine, "job_0")):
            with pytest.raises(NotFound) as caught:
                jobs.get_job(session, workspace_id, wanted)
            errors.append((caught.value.code, caught.value.detail, caught.value.facts))
    assert errors[0] == errors[1]


def test_a_list_is_walked_page_by_page_newest_first_and_nothing_twice(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        dataset = add_dataset(session, workspace_id)
        ids = [add_job(session, dataset).id for _ in range(7)]
        session.execute(update(JobRow).where(JobRow.id.in_(ids[:5])).values(created_at=100.0))  # all at once
        add_job(session, add_dataset(session, add_workspace(session)))
    found, cursor = [], None
    with reading(engine) as session:
        while True:
            page = jobs.list_jobs(session, workspace_id, limit=3, cursor=cursor)
            found += [row.id for row in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sorted(found) == sorted(ids)
        assert found[2:] == sorted(ids[:5], reverse=True)
        assert [j.id for j in jobs.list_jobs(session, workspace_id, state="RUNNING").items] == []


@pytest.mark.parametrize("cursor", ["", "x", "é", "W10", "WzEsMl0", "WyJhIiwgImIiXQ", "bnVsbA", "W" * 5000])
def test_a_made_up_cursor_is_refused(sqlite_engine: Engine, cursor: str) -> None:
    with reading(sqlite_engine) as session, pytest.raises(Invalid, match="bad_cursor"):
        jobs.list_jobs(session, "ws", cursor=cursor)


def test_an_idempotency_key_finds_the_first_job(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        dataset_id = add_dataset(session, workspace_id).id

    def submit(key: str | None, body: str) -> tuple[str, bool]:
        def build() -> JobRow:
            return JobRow(id=new_id("job"), workspace_id=workspace_id, name="a", dataset_id=dataset_id,
                          state="WAITING", spec=a_spec())  # fmt: skip

        with transaction(engine) as session:
            job, created = jobs.create_job(session, workspace_id, key, body, build)
            return job.id, created

    first, created = submit("k", "1" * 64)
    assert created
    assert submit("k", "1" * 64) == (first, False)
    with pytest.raises(Invalid, match="idempotency_key_reused"):
        submit("k", "2" * 64)
    assert submit("l", "1" * 64)[1]
    assert submit(None, "1" * 64)[1]
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(JobRow)) == 3


@pytest.mark.parametrize(("before", "after"), [*product(STATES, STATES)])
def test_a_job_moves_along_its_legal_moves_alone(sqlite_engine: Engine, before: str, after: str) -> None:
    with transaction(sqlite_engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)), before)
        n_events = job.n_events
        if JobState(before).can_become(JobState(after)):
            become(session, job, after)
            assert job.state == after
            assert states_told(session, job.id)[-1] == after
            assert (job.finished_at is not None) == JobState(after).finished
        else:
            with pytest.raises(Conflict, match="wrong_state"):
                become(session, job, after)
            assert (job.state, job.n_events) == (before, n_events)


def test_a_move_from_a_state_that_has_passed_is_refused(engine: Engine) -> None:
    with transaction(engine) as session:
        job_id = add_job(session, add_dataset(session, add_workspace(session))).id
    with reading(engine) as session:
        stale = session.get_one(JobRow, job_id)
    with transaction(engine) as session:
        become(session, session.get_one(JobRow, job_id), "CANCELLED")
    with transaction(engine) as session:
        session.add(stale)
        with pytest.raises(Conflict) as caught:
            become(session, stale, "PROBING")
    assert caught.value.facts["state"] == "CANCELLED"


def test_pausing_stops_the_clock_and_resuming_goes_on_where_it_was(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
        running, fresh = add_job(session, dataset, "RUNNING"), add_job(session, dataset)
        for job in (running, fresh, running):  # the second pause of a job changes nothing
            assert jobs.pause(session, dataset.workspace_id, job.id).state == "PAUSED"
        assert running.paused_at is not None
        session.execute(update(JobRow).values(paused_at=now() - 100))
        for job, state in ((running, "RUNNING"), (fresh, "WAITING"), (running, "RUNNING")):
            assert jobs.resume(session, dataset.workspace_id, job.id).state == state
        assert 100 <= running.paused_s < 110
        assert running.paused_at is None
        assert states_told(session, running.id)[-3:] == ["RUNNING", "PAUSED", "RUNNING"]


@pytest.mark.parametrize("state", ["FINISHING", "COMPLETE", "FAILED", "CANCELLED"])
def test_what_is_over_is_neither_paused_nor_resumed_nor_extended(sqlite_engine: Engine, state: str) -> None:
    with transaction(sqlite_engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)), state)
        for ask in (jobs.pause, jobs.resume, partial(jobs.extend_budget, more={"trials": 99})):
            with pytest.raises(Conflict, match="wrong_state"):
                ask(session, job.workspace_id, job.id)


@pytest.mark.parametrize(
    ("state", "keep", "has_best", "ends"),
    [
        ("WAITING", "best", False, "CANCELLED"), ("PROBING", "best", False, "CANCELLED"),
        ("RUNNING", "best", False, "CANCELLED"), ("RUNNING", "best", True, "FINISHING"),
        ("RUNNING", "nothing", True, "CANCELLED"), ("PAUSED", "best", True, "FINISHING"),
        ("FINISHING", "best", True, "FINISHING"), ("FINISHING", "nothing", True, "CANCELLED"),
        ("CANCELLED", "best", False, "CANCELLED"),
    ],
)  # fmt: skip
def test_cancelling_keeps_the_best_where_there_is_one(
    sqlite_engine: Engine, state: str, keep: str, has_best: bool, ends: str
) -> None:
    with transaction(sqlite_engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)), state)
        if has_best:
            jobs.set_facts(session, job, best_trial_id="tr_1")
        jobs.cancel(session, job.workspace_id, job.id, keep)
        assert job.state == ends
        if ends != state:
            assert job.stopped_by == "user"


@pytest.mark.parametrize("state", ["COMPLETE", "FAILED"])
def test_what_has_ended_by_itself_cannot_be_cancelled(sqlite_engine: Engine, state: str) -> None:
    with transaction(sqlite_engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)), state)
        with pytest.raises(Conflict, match="wrong_state"):
            jobs.cancel(session, job.workspace_id, job.id, "nothing")


def test_a_budget_can_only_grow(engine: Engine) -> None:
    left = {"trials": 5, "wall_s": None, "device_s": 60.0, "target": 0.2, "patience": None}
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
        job = add_job(session, dataset, budget=left, objective={"name": "log_loss"})
        wrong: list[dict[str, float]] = [
            {"trials": 4}, {"wall_s": 60.0}, {"trials": 10_001}, {"device_s": 59.0}, {"patience": 3},
            {"target": 0.3}, {"target": -1.0},
        ]  # fmt: skip
        for more in wrong:
            with pytest.raises(Invalid):
                jobs.extend_budget(session, job.workspace_id, job.id, more)
        jobs.extend_budget(session, job.workspace_id, job.id, {"trials": 9, "target": 0.1})
        jobs.extend_budget(session, job.workspace_id, job.id, {"trials": 9})  # the same again is no news
        assert job.spec["budget"] == left | {"trials": 9, "target": 0.1}
        told = [e.body for e in since(session, job.id) if e.kind == "job.budget"]
        assert told == [left | {"trials": 9, "target": 0.1}]


def test_what_an_unfinished_job_needs_is_told_by_name(engine: Engine) -> None:
    def source(ref: str) -> dict[str, str]:
        return {"ref": ref, "backbone": "resnet18", "kind": "job"}

    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
        done = add_job(session, dataset, "COMPLETE")
        by_source = add_job(session, dataset, sources=[source(done.id)])
        by_teacher = add_job(session, dataset, "PAUSED", teacher={"ref": done.id})
        add_job(session, dataset, "FAILED", sources=[source(done.id)])
        workspace_id = dataset.workspace_id
        related = add_dataset(session, workspace_id)
        by_data = add_job(session, related, "RUNNING", source_dataset_id=dataset.id, teacher={"ref": "best"})
        assert jobs.needers(session, workspace_id, dataset.id) == [by_source.id, by_teacher.id, by_data.id]
        become(session, by_data, "CANCELLED")
        assert jobs.needers(session, workspace_id, done.id) == [by_source.id, by_teacher.id]
        assert jobs.needers(session, workspace_id, dataset.id) == [by_source.id, by_teacher.id]
        with pytest.raises(Conflict) as caught:
            jobs.delete_job(session, workspace_id, done.id)
        assert caught.value.facts["needed_by"] == [by_source.id, by_teacher.id]


def test_a_deleted_job_takes_its_rows_and_its_last_references_along(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
        job, other = add_job(session, dataset, "RUNNING"), add_job(session, dataset)
        add_lot(session, job, 0, 1)
        trial = trials_of(session, job.id)[0]
        add_blob(session, job.workspace_id, "ws/trials/a", INFO, trial.id)
        add_blob(session, job.workspace_id, "ws/shared", INFO, trial.id)
        add_blob(session, job.workspace_id, "ws/shared", INFO, other.id)
        add_blob(session, job.workspace_id, "ws/bundle", INFO, job.id)
        with pytest.raises(Conflict):
            jobs.delete_job(session, job.workspace_id, job.id)
        jobs.cancel(session, job.workspace_id, job.id, "nothing")
        job_id = job.id
    with transaction(engine) as session:
        assert jobs.delete_job(session, dataset.workspace_id, job_id) == ["ws/bundle", "ws/trials/a"]
    with reading(engine) as session:
        for row in (TrialRow, LotRow):
            assert session.scalar(select(func.count()).select_from(row)) == 0
        assert set(session.scalars(select(EventRow.job_id))) == {other.id}
        assert "ws/shared" in set(session.scalars(select(BlobRow.key)))
        with pytest.raises(NotFound):
            jobs.get_job(session, dataset.workspace_id, job_id)


def test_events_count_from_one_and_are_read_in_order(engine: Engine) -> None:
    with transaction(engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)))
        for n in range(5):
            tell(session, job.id, "job.log", {"n": n})
    with pytest.raises(NotFound), transaction(engine) as session:
        tell(session, "job_0", "job.log", {})
    with reading(engine) as session:
        assert [(e.seq, e.body["n"]) for e in since(session, job.id, 1)] == [(n + 2, n) for n in range(5)]
        assert [e.seq for e in since(session, job.id, 3)] == [4, 5, 6]
        assert [e.seq for e in since(session, job.id, 1, limit=2)] == [2, 3]


def test_an_event_that_is_rolled_back_leaves_no_gap(engine: Engine) -> None:
    with transaction(engine) as session:
        job_id = add_job(session, add_dataset(session, add_workspace(session))).id
    with suppress(KeyError), transaction(engine) as session:
        tell(session, job_id, "job.log", {})
        raise KeyError
    with transaction(engine) as session:
        tell(session, job_id, "job.log", {"a": float("nan"), "b": "\0"})
    with reading(engine) as session:
        assert [(e.seq, e.body) for e in since(session, job_id, 1)] == [(2, {"a": None, "b": "\ufffd"})]
