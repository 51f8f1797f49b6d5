"""Leases over real rows: kept while there is a heartbeat, lost when somebody else has the row."""

import time

import pytest

from domain.errors import LeaseLost, Unavailable
from store.leases import hold, take_back
from store.tables import JobRow, LotRow
from tests.rows import add_lot
from tests.servers import wait_until
from tests.unit.worker.conftest import Open, Workshop
from worker.lease import Lease


@pytest.fixture
def place(open_workshop: Open) -> Workshop:
    return open_workshop(lease_s=1.0, heartbeat_s=0.1)


@pytest.fixture
def lot_id(place: Workshop) -> str:
    job_id = place.job()
    with place.context.transaction() as session:
        return add_lot(session, session.get_one(JobRow, job_id), 0).id


def lease_until(place: Workshop, lot_id: str) -> float:
    with place.context.reading() as session:
        return session.get_one(LotRow, lot_id).lease_until or 0.0


def test_a_heartbeat_keeps_it(place: Workshop, lot_id: str) -> None:
    with Lease(place.context, LotRow, lot_id, place.begin(lot_id, lease_s=1.0)) as lease:
        first = lease_until(place, lot_id)
        assert wait_until(lambda: lease_until(place, lot_id) > first)
        lease.check()
    at = lease_until(place, lot_id)
    time.sleep(0.25)
    assert lease_until(place, lot_id) == at, "nobody renews what is left"


def test_it_is_lost_once_the_row_was_taken_back(place: Workshop, lot_id: str) -> None:
    fence = place.begin(lot_id, lease_s=-1.0)
    with place.context.transaction() as session:
        assert take_back(session, LotRow, lot_id) is not None
    with Lease(place.context, LotRow, lot_id, fence) as lease:
        assert lease.lost.wait(5.0)
        with pytest.raises(LeaseLost):
            lease.check()
    with pytest.raises(LeaseLost), place.context.transaction() as session:
        hold(session, LotRow, lot_id, fence)


def test_a_write_is_done_again_while_a_server_is_away(place: Workshop, lot_id: str) -> None:
    tries = []

    def write() -> str:
        tries.append(time.monotonic())
        if len(tries) < 2:
            raise Unavailable("database_unavailable", "the database does not answer")
        return "written"

    with Lease(place.context, LotRow, lot_id, place.begin(lot_id)) as lease:
        assert lease.insist(write) == "written"
    assert len(tries) == 2


@pytest.mark.parametrize("why", ["a lease has passed", "the worker stops"])
def test_it_insists_no_longer_than(place: Workshop, lot_id: str, why: str) -> None:
    def write() -> None:
        raise Unavailable("blobs_unavailable", "the blob store does not answer")

    if why == "the worker stops":
        place.context.stopping.set()
    begun = time.monotonic()
    with Lease(place.context, LotRow, lot_id, place.begin(lot_id)) as lease, pytest.raises(Unavailable):
        lease.insist(write)
    assert time.monotonic() - begun < 5.0
