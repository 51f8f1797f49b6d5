import pytest
from sqlalchemy import Engine, func, select

from domain.errors import LeaseLost, NotFound
from domain.trial import Report
from store.events import since
from store.leases import claim
from store.moves import become
from store.session import reading, transaction
from store.tables import JobRow, LotRow, ReportRow, TrialRow
from store.trials import (
    NewTrial,
    best_trials,
    count_states,
    get_trial,
    insert_lot,
    list_trials,
    lots_of,
    note_best,
    record_reports,
    reports_of,
    set_trial_facts,
    trials_of,
    trials_of_lot,
)
from tests.rows import add_dataset, add_job, add_lot, add_workspace


@pytest.fixture
def job_id(engine: Engine) -> str:
    with transaction(engine) as session:
        return add_job(session, add_dataset(session, add_workspace(session)), "RUNNING").id


def begin(engine: Engine, job_id: str, *numbers: int) -> tuple[str, int, list[str]]:
    """A lot under way: its id, its fence, the ids of its trials."""
    with transaction(engine) as session:
        lot = add_lot(session, session.get_one(JobRow, job_id), *numbers)
        fence = claim(session, LotRow, lot.id, state_from="WAITING", state_to="RUNNING", owner="w", lease_s=60,
                      max_attempts=3)  # fmt: skip
        assert fence is not None
        return lot.id, fence, [t.id for t in trials_of_lot(session, lot.id)]


def point(trial_id: str, step: int, *, value: float | None = 0.5, cost_s: float = 1.0, fold: int = 0) -> Report:
    return Report(trial_id=trial_id, fold=fold, phase=0, step=step, share=step / 100, value=value, cost_s=cost_s,
                  terms={"task": 1.0})  # fmt: skip


def test_the_loser_of_a_race_for_a_number_inserts_nothing(engine: Engine, job_id: str) -> None:
    with transaction(engine) as session:
        assert insert_lot(session, job_id, [NewTrial(0, {}, {}), NewTrial(1, {}, {})]) is not None
    with transaction(engine) as session:
        assert insert_lot(session, job_id, [NewTrial(2, {}, {}), NewTrial(1, {}, {})]) is None
        assert insert_lot(session, job_id, [NewTrial(2, {"lr": 0.1}, {"steps": 5}, anchor="l2_sp")]) is not None
    with reading(engine) as session:
        assert [t.number for t in trials_of(session, job_id)] == [0, 1, 2]
        assert len(lots_of(session, job_id)) == 2
        told = [e.body for e in since(session, job_id) if e.kind == "trial.created"]
        assert [t["number"] for t in told] == [0, 1, 2]
        assert (told[2]["anchor"], told[2]["values"]) == ("l2_sp", {"lr": 0.1})


@pytest.mark.parametrize("state", ["WAITING", "PAUSED", "FINISHING", "CANCELLED"])
def test_a_job_that_does_not_run_gets_no_trials(sqlite_engine: Engine, state: str) -> None:
    with transaction(sqlite_engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)), state)
        assert insert_lot(session, job.id, [NewTrial(0, {}, {})]) is None
        assert insert_lot(session, "job_0", [NewTrial(0, {}, {})]) is None


def test_a_resumed_trial_doubles_nothing(engine: Engine, job_id: str) -> None:
    lot_id, fence, (a, b) = begin(engine, job_id, 0, 1)
    first = [point(a, 1, cost_s=1), point(b, 1, cost_s=2), point(a, 2, cost_s=3), point(a, 2, cost_s=3, fold=1)]
    again = [point(a, 2, value=0.7, cost_s=2.5), point(a, 3, value=None, cost_s=4), point(b, 1, cost_s=2)]
    for reports in (first, again):
        with transaction(engine) as session:
            record_reports(session, lot_id, fence, reports)
    with reading(engine) as session:
        curve = [(r.fold, r.step, r.value) for r in reports_of(session, [a])]
        assert curve == [(0, 1, 0.5), (0, 2, 0.7), (1, 2, 0.5), (0, 3, None)]
        assert len(reports_of(session, [a, b])) == 5
        told = [(e.body["number"], e.body["step"], e.body["fold"]) for e in since(session, job_id)
                if e.kind == "trial.report"]  # fmt: skip
        assert told == [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 2, 1), (0, 2, 0), (0, 3, 0)]
        trial = get_trial(session, session.get_one(JobRow, job_id).workspace_id, a)
        assert (trial.share, trial.cost_s) == (0.03, 4.0)
        assert session.get_one(JobRow, job_id).cost_s == 6.0  # 4 + 2: the sum over its trials


def test_numbers_that_are_none_become_null(engine: Engine, job_id: str) -> None:
    lot_id, fence, (a,) = begin(engine, job_id, 0)
    nan = Report(trial_id=a, fold=0, phase=0, step=1, share=0.1, value=float("nan"), terms={"task": float("inf")})
    with transaction(engine) as session:
        record_reports(session, lot_id, fence, [nan])
    with reading(engine) as session:
        row = reports_of(session, [a])[0]
        assert (row.value, row.terms) == (None, {"task": None})


def test_reports_under_an_old_fence_are_refused_whole(engine: Engine, job_id: str) -> None:
    lot_id, fence, (a,) = begin(engine, job_id, 0)
    with pytest.raises(LeaseLost), transaction(engine) as session:
        record_reports(session, lot_id, fence - 1, [point(a, 1)])
    with pytest.raises(NotFound), transaction(engine) as session:
        record_reports(session, lot_id, fence, [point(a, 1), point("tr_0", 1)])
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(ReportRow)) == 0


def test_a_trial_tells_its_moves(engine: Engine, job_id: str) -> None:
    _, _, (a, _) = begin(engine, job_id, 0, 1)
    with transaction(engine) as session:
        trial = session.get_one(TrialRow, a)
        become(session, trial, "RUNNING")
        set_trial_facts(session, trial, cost_s=2.5, resume_blob="ws/resume")
        become(session, trial, "COMPLETE", value=0.9)
        assert trial.started_at is not None
        assert trial.finished_at is not None
    with reading(engine) as session:
        told = [e.body for e in since(session, job_id) if e.kind == "trial.state"]
        assert told == [
            {"trial_id": a, "number": 0, "state": "RUNNING", "cost_s": 0.0},
            {"trial_id": a, "number": 0, "state": "COMPLETE", "value": 0.9, "cost_s": 2.5},
        ]
        assert count_states(session, [job_id, "job_0"]) == {job_id: {"COMPLETE": 1, "WAITING": 1}, "job_0": {}}
        assert session.get_one(JobRow, job_id).cost_s == 2.5


@pytest.mark.parametrize(("direction", "ranked"), [("maximize", [1, 2, 0]), ("minimize", [0, 1, 2])])
def test_the_best_of_equals_is_the_earlier_one(engine: Engine, job_id: str, direction: str, ranked: list[int]) -> None:
    begin(engine, job_id, 0, 1, 2, 3, 4)
    with transaction(engine) as session:
        for trial, value in zip(trials_of(session, job_id), [0.2, 0.8, 0.8, None, 0.0], strict=True):
            become(session, trial, "RUNNING")
            become(session, trial, "COMPLETE" if trial.number < 4 else "FAILED", value=value)
        best = best_trials(session, job_id, direction=direction, limit=10)
        assert [t.number for t in best] == ranked
        job = session.get_one(JobRow, job_id)
        assert note_best(session, job, best[0])
        assert not note_best(session, job, best[0])
        assert note_best(session, job, best[1])
        assert job.best_trial_id == best[1].id
        assert [e.body["number"] for e in since(session, job_id) if e.kind == "job.best"] == ranked[:2]


def test_trials_are_walked_by_number(engine: Engine, job_id: str) -> None:
    begin(engine, job_id, *range(5))
    with reading(engine) as session:
        workspace_id = session.get_one(JobRow, job_id).workspace_id
        found, cursor = [], None
        for _ in range(3):
            page = list_trials(session, workspace_id, job_id, limit=2, cursor=cursor)
            found.append([t.number for t in page.items])
            cursor = page.next_cursor
        assert (found, cursor) == ([[0, 1], [2, 3], [4]], None)
        assert list_trials(session, "ws_other", job_id).items == []
        with pytest.raises(NotFound):
            get_trial(session, "ws_other", page.items[0].id)
