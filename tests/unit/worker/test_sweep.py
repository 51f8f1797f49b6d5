"""The sweep over real rows: nothing stays where nobody works on it, and nothing goes that somebody may need."""

import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from store.leases import claim
from store.moves import become
from store.queue import QUEUES
from store.settings import Settings
from store.tables import DatasetRow, JobRow, LotRow, TrialRow
from store.workers import live_workers, seen
from tests.rows import add_dataset, add_lot, add_workspace
from tests.servers import wait_until
from tests.unit.worker.conftest import Open, Workshop
from worker.lots import fail_lot
from worker.pulse import Pulse
from worker.sweep import sweep, tidy_machine


def a_lot(place: Workshop, job_id: str, number: int = 0) -> str:
    with place.context.transaction() as session:
        return add_lot(session, session.get_one(JobRow, job_id), number).id


def lot(place: Workshop, lot_id: str) -> LotRow:
    with place.context.reading() as session:
        return session.get_one(LotRow, lot_id)


def test_a_lot_whose_worker_went_silent_waits_for_another_and_is_rung_for(place: Workshop) -> None:
    job_id = place.job()
    lot_id, living = a_lot(place, job_id, 0), a_lot(place, job_id, 1)
    place.begin(lot_id, lease_s=-1.0)
    place.begin(living)
    assert sweep(place.context)
    assert (lot(place, lot_id).state, lot(place, lot_id).owner, lot(place, lot_id).attempt) == ("WAITING", None, 1)
    assert lot(place, living).state == "RUNNING"
    assert [t.state for t in place.trials(job_id)] == ["WAITING", "RUNNING"]
    assert ("run_lot", lot_id) in place.heard()


def test_what_cost_too_many_workers_has_failed(place: Workshop) -> None:
    job_id = place.job()
    lot_id = a_lot(place, job_id)
    probing, finishing = place.job("PROBING"), place.job("FINISHING")
    with place.context.transaction() as session:
        dataset = add_dataset(session, add_workspace(session), "CHECKING")
    for row, row_id in ((LotRow, lot_id), (JobRow, probing), (JobRow, finishing), (DatasetRow, dataset.id)):
        place.write(row, row_id, attempt=3)
    sweep(place.context)
    (trial,) = place.trials(job_id)
    assert (trial.state, lot(place, lot_id).state) == ("FAILED", "DONE")
    assert trial.error is not None
    assert trial.error["code"] == "lost_worker"
    for ended in (probing, finishing):
        error = place.state(ended).error
        assert error is not None
        assert (place.state(ended).state, error["code"]) == ("FAILED", "lost_worker")
    with place.context.reading() as session:
        refused = session.get_one(DatasetRow, dataset.id)
        assert (refused.state, refused.upload_blob) == ("REJECTED", None)
    assert {("advance", job_id), ("advance", probing), ("advance", finishing)} <= set(place.heard())


def test_a_row_that_cannot_be_moved_does_not_keep_the_others_from_it(place: Workshop) -> None:
    """Such as one that a newer version has written, in the middle of a rolling upgrade."""
    job_id = place.job()
    lots = sorted([a_lot(place, job_id, 0), a_lot(place, job_id, 1)])
    for lot_id in lots:
        place.write(LotRow, lot_id, attempt=3)
    (strange,) = [t.id for t in place.trials(job_id) if t.lot_id == lots[0]]
    place.write(TrialRow, strange, state="DREAMING")
    assert sweep(place.context)
    assert [lot(place, lot_id).state for lot_id in lots] == ["WAITING", "DONE"]


def test_a_paused_trial_of_a_hopeless_lot_fails_too(place: Workshop) -> None:
    job_id = place.job()
    lot_id = a_lot(place, job_id)
    place.begin(lot_id)
    with place.context.transaction() as session:
        become(session, session.query(TrialRow).one(), "PAUSED")
        fail_lot(session, session.get_one(LotRow, lot_id), "crashed", "again and again")
    assert place.trials(job_id)[0].state == "FAILED"


def test_jobs_and_datasets_that_wait_are_rung_for_again_and_not_too_often(place: Workshop) -> None:
    jobs = {state: place.job(state) for state in ("WAITING", "RUNNING", "FINISHING", "PAUSED", "COMPLETE")}
    with place.context.transaction() as session:
        dataset_id = add_dataset(session, add_workspace(session), "CHECKING").id
    sweep(place.context)
    wanted = {("advance", jobs[state]) for state in ("WAITING", "RUNNING", "FINISHING")}
    assert set(place.heard()) == wanted | {("prepare_dataset", dataset_id)}
    sweep(place.context)
    assert place.heard() == []


def test_one_worker_at_a_time_has_the_turn(open_workshop: Open) -> None:
    places = [open_workshop(sweep_s=60.0) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda place: sweep(place.context), places)) == [False, False, False, True]


def test_bytes_that_no_row_knows_go_once_they_are_older_than_a_lease(place: Workshop) -> None:
    job_id = place.job()
    a_lot(place, job_id)
    (trial,) = place.trials(job_id)
    place.end(trial, value=0.5)
    known = place.trials(job_id)[0].checkpoint_blob
    assert known is not None
    young, old = f"{trial.workspace_id}/trials/x/1/young", f"{trial.workspace_id}/trials/x/1/old"
    for key in (young, old):
        place.context.blobs.put(key, io.BytesIO(b"left behind"))
    lease_s = place.context.settings.lease_s
    place.age(old, 2 * lease_s)
    place.age(young, lease_s / 2)
    place.age(known, 1e6)
    sweep(place.context)
    assert set(place.context.blobs.keys()) == {known, young}


def test_an_ended_job_that_still_holds_what_goes_with_its_end_is_advanced(place: Workshop) -> None:
    """The message that it was cancelled was lost."""
    cancelled, complete = place.job(), place.job()
    for job_id in (cancelled, complete):
        a_lot(place, job_id)
        place.end(place.trials(job_id)[0], value=0.5)
    with place.context.transaction() as session:
        become(session, session.get_one(JobRow, cancelled), "CANCELLED")
        become(session, session.get_one(JobRow, complete), "FINISHING")
        become(session, session.get_one(JobRow, complete), "COMPLETE")
    sweep(place.context)
    assert place.heard() == [("advance", cancelled)]


def test_a_machine_keeps_its_caches_within_the_limit_and_no_old_scratch(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, max_cache_bytes=3000, lease_s=20.0)
    week_ago, hour_ago = time.time() - 7 * 86_400, time.time() - 3600
    for place, name, at in (
        ("ws_1/packs", "old", week_ago), ("ws_1/packs", "new", hour_ago), ("scratch", "dead", week_ago),
        ("scratch", "alive", time.time()), ("ws_1/activations", "idle", hour_ago),
        ("ws_1/activations", "read", time.time()),
    ):  # fmt: skip
        folder = settings.cache / place / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(2000))
        os.utime(folder, (at, at))
    tidy_machine(settings)
    kinds = ("ws_1/packs", "ws_1/activations", "scratch")
    left = {folder.name for kind in kinds for folder in (settings.cache / kind).iterdir()}
    assert left == {"new", "read", "alive"}, "activations are worked out again, packs may be needed for a while"


def test_a_worker_says_that_it_lives_and_says_goodbye(open_workshop: Open) -> None:
    place = open_workshop(sweep_s=0.05, heartbeat_s=0.1, lease_s=60.0)

    def heard() -> dict[str, float]:
        with place.context.reading() as session:
            return {w.id: w.seen_at for w in live_workers(session, None, within_s=60.0)}

    with place.context.transaction() as session:
        seen(session, "another", ["trials"], {})
    pulse = Pulse(place.context, QUEUES)
    pulse.start()
    try:
        first = heard()[place.context.worker_id]
        assert wait_until(lambda: heard()[place.context.worker_id] > first)
    finally:
        pulse.stop()
    assert set(heard()) == {"another"}


def test_a_job_whose_lease_ran_out_is_claimed_again_under_the_next_fence(place: Workshop) -> None:
    job_id = place.job("FINISHING")

    def take(owner: str) -> int | None:
        with place.context.transaction() as session:
            return claim(session, JobRow, job_id, state_from="FINISHING", state_to=None, owner=owner, lease_s=60.0,
                         max_attempts=3)  # fmt: skip

    assert [take("first"), take("second")] == [1, None]
    place.write(JobRow, job_id, lease_until=1.0)
    sweep(place.context)
    assert place.state(job_id).owner is None
    assert take("third") == 2
