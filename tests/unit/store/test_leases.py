import pytest
from sqlalchemy import Engine, select, update

from domain.errors import LeaseLost
from store.clock import now
from store.events import since
from store.leases import claim, due, exhausted, expired, hold, release, renew, take_back, take_turn
from store.moves import become
from store.session import reading, transaction
from store.tables import DatasetRow, JobRow, LotRow
from tests.rows import add_dataset, add_job, add_lot, add_workspace


@pytest.fixture
def lot_id(engine: Engine) -> str:
    with transaction(engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)), "RUNNING")
        return add_lot(session, job, 0).id


def take(engine: Engine, lot_id: str, owner: str = "a", *, lease_s: float = 60.0, max_attempts: int = 3) -> int | None:
    with transaction(engine) as session:
        return claim(
            session, LotRow, lot_id, state_from="WAITING", state_to="RUNNING", owner=owner, lease_s=lease_s,
            max_attempts=max_attempts,
        )  # fmt: skip


def silence(engine: Engine, lot_id: str, lease_until: float | None = 1.0) -> None:
    """The owner has said nothing for a long time."""
    with transaction(engine) as session:
        session.execute(update(LotRow).where(LotRow.id == lot_id).values(lease_until=lease_until))


def test_the_first_claim_wins_and_the_second_finds_nothing_to_do(engine: Engine, lot_id: str) -> None:
    assert take(engine, lot_id, "a") == 1
    assert take(engine, lot_id, "b") is None
    with reading(engine) as session:
        lot = session.get_one(LotRow, lot_id)
        assert (lot.state, lot.owner, lot.fence, lot.attempt) == ("RUNNING", "a", 1, 1)
        left_s = session.scalar(select(LotRow.lease_until - now()).where(LotRow.id == lot_id))
        assert left_s is not None
        assert 50 < left_s <= 60


def test_a_row_whose_lease_has_run_out_can_be_claimed_anew_in_place(engine: Engine) -> None:
    with transaction(engine) as session:
        row_id = add_dataset(session, add_workspace(session), "CHECKING").id
    fences = []
    for owner, lease_s in (("a", -1.0), ("b", 60.0), ("c", 60.0)):
        with transaction(engine) as session:
            fences.append(
                claim(session, DatasetRow, row_id, state_from="CHECKING", state_to=None, owner=owner,
                      lease_s=lease_s, max_attempts=3)
            )  # fmt: skip
    assert fences == [1, 2, None]


def test_a_row_is_not_claimed_before_its_time_nor_beyond_its_attempts(engine: Engine, lot_id: str) -> None:
    fence = take(engine, lot_id)
    assert fence == 1
    with transaction(engine) as session:
        assert release(session, LotRow, lot_id, fence, state="WAITING", not_before_s=3600)
    assert take(engine, lot_id) is None
    with transaction(engine) as session:
        session.execute(update(LotRow).values(not_before=0.0))
    assert take(engine, lot_id, max_attempts=1) is None
    with reading(engine) as session:
        assert exhausted(session, LotRow, ["WAITING"], max_attempts=1) == [lot_id]
        assert exhausted(session, LotRow, ["WAITING"], max_attempts=2) == []
    assert take(engine, lot_id, max_attempts=2) == 2


def test_a_zombie_can_write_nothing_once_the_row_was_taken_back(engine: Engine, lot_id: str) -> None:
    fence = take(engine, lot_id)
    assert fence is not None
    silence(engine, lot_id)
    with transaction(engine) as session:
        lot = take_back(session, LotRow, lot_id)
        assert lot is not None
        become(session, lot, "WAITING")
    for again in (False, True):  # before and after somebody else has claimed it
        if again:
            assert take(engine, lot_id, "b") == fence + 1
        with transaction(engine) as session:
            assert not renew(session, LotRow, lot_id, fence, 60)
            assert not release(session, LotRow, lot_id, fence, state="WAITING")
            with pytest.raises(LeaseLost):
                hold(session, LotRow, lot_id, fence)
    with transaction(engine) as session:
        assert hold(session, LotRow, lot_id, fence + 1).owner == "b"


def test_a_late_heartbeat_keeps_a_row_that_nobody_has_taken_back(engine: Engine, lot_id: str) -> None:
    fence = take(engine, lot_id, lease_s=-1)
    assert fence is not None
    with transaction(engine) as session:
        assert renew(session, LotRow, lot_id, fence, 60)
        assert expired(session, LotRow) == []
        assert take_back(session, LotRow, lot_id) is None


@pytest.mark.parametrize("lease_until", [1.0, None])
def test_a_silent_owner_is_found_also_when_its_lease_was_never_written(
    engine: Engine, lot_id: str, lease_until: float | None
) -> None:
    take(engine, lot_id)
    with reading(engine) as session:
        assert expired(session, LotRow) == []
    silence(engine, lot_id, lease_until)
    with reading(engine) as session:
        assert expired(session, LotRow) == [lot_id]


def test_a_row_that_waits_for_its_first_claim_has_not_expired(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session), "CHECKING")
        add_job(session, dataset, "FINISHING")
    with reading(engine) as session:
        assert expired(session, DatasetRow) == []
        assert expired(session, JobRow) == []


def test_a_move_by_somebody_else_ends_the_lease(engine: Engine) -> None:
    with transaction(engine) as session:
        job = add_job(session, add_dataset(session, add_workspace(session)))
        fence = claim(session, JobRow, job.id, state_from={"WAITING", "PROBING"}, state_to="PROBING", owner="a",
                      lease_s=60, max_attempts=3)  # fmt: skip
        assert fence == 1
    with transaction(engine) as session:
        become(session, session.get_one(JobRow, job.id), "PAUSED")
    with transaction(engine) as session, pytest.raises(LeaseLost):
        hold(session, JobRow, job.id, fence)
    with reading(engine) as session:
        told = [event.body["state"] for event in since(session, job.id)]
    assert told == ["WAITING", "PROBING", "PAUSED"]


def test_a_row_is_due_until_it_was_rung_for(engine: Engine, lot_id: str) -> None:
    with transaction(engine) as session:
        assert due(session, LotRow, ["WAITING"], quiet_s=30) == []  # whoever inserts a lot rings for it
        session.execute(update(LotRow).values(woken_at=LotRow.woken_at - 31))
        assert due(session, LotRow, ["WAITING"], quiet_s=30) == [lot_id]
        assert due(session, LotRow, ["WAITING"], quiet_s=30) == []
        assert due(session, LotRow, ["WAITING"], quiet_s=-1) == [lot_id]
    take(engine, lot_id)
    with transaction(engine) as session:
        assert due(session, LotRow, ["WAITING", "RUNNING"], quiet_s=-1) == []


def test_a_turn_belongs_to_one_owner_until_it_is_over(engine: Engine) -> None:
    turns = [("a", 60.0), ("b", 60.0), ("a", -1.0), ("b", 60.0), ("a", 60.0)]
    taken = []
    for owner, for_s in turns:
        with transaction(engine) as session:
            taken.append(take_turn(session, "sweep", owner, for_s))
    assert taken == [True, False, True, True, False]
    with transaction(engine) as session:
        assert take_turn(session, "another", "a", 60)
