"""`advance` over real rows of both databases: every legal next thing, and nothing twice."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from domain.job import Budget
from domain.states import JobState
from store.jobs import extend_budget
from store.leases import due
from store.moves import become
from store.tables import BlobRow, JobRow, LotRow, TrialRow
from store.trials import lots_of
from store.workers import seen
from tests.unit.worker.conftest import Open, Workshop
from worker.advance import _settle, advance
from worker.budgets import elapsed_s

ROOT = Path(__file__).parents[3]
ANCHORS = ["linear_probe", "fine_tuning", "l2_sp"]

PROPOSE = """
import json, sys
from pathlib import Path
from domain.job import JobSpec
from store.session import make_engine, reading
from store.tables import JobRow
from worker.searches import SEARCHES, read_history
with reading(make_engine(sys.argv[1])) as session:
    spec = JobSpec.model_validate(session.get_one(JobRow, sys.argv[2]).spec)
    with SEARCHES.of(sys.argv[2], spec) as search:
        search.learn([p for p in read_history(session, sys.argv[2], search) if p.number < int(sys.argv[3])])
        print(json.dumps(search.ask(int(sys.argv[3])).values))
"""


def run_all(place: Workshop, job_id: str, values: list[float]) -> None:
    """Every waiting trial completes, in order, with these values."""
    for trial, value in zip((t for t in place.trials(job_id) if t.state == "WAITING"), values, strict=True):
        place.end(trial, value=value)


def test_anchors_come_first_then_the_search_and_never_more_than_the_budget(place: Workshop) -> None:
    job_id = place.job(parallel=20)
    advance(place.context, job_id)
    trials = place.trials(job_id)
    assert [t.number for t in trials] == list(range(6))
    assert [t.anchor for t in trials] == [*ANCHORS, None, None, None]
    assert place.heard() == [("run_lot", t.lot_id) for t in trials]
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 6


def test_a_budget_smaller_than_the_anchors_holds(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=2), parallel=9)
    advance(place.context, job_id)
    assert [t.anchor for t in place.trials(job_id)] == ANCHORS[:2]


def test_as_many_at_once_as_there_are_workers_and_short_trials_one_ahead(place: Workshop) -> None:
    job_id = place.job(parallel=None)
    with place.context.transaction() as session:
        seen(session, "first", ["trials"], {})
        seen(session, "second", ["control", "trials"], {})
        seen(session, "third", ["control"], {})
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 2
    place.write(JobRow, job_id, estimate={"s_per_trial": 1.0})
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 4


HEADS = {
    "steps": 100, "data.batch_size": 32, "data.resolution": 64, "data.augmentation": 0.0, "data.flip": False,
    "data.mixup_alpha": 0.0, "head.kind": "linear", "optimizer.name": "sgd", "schedule": "freeze",
    "schedule.freeze.depth": 5,
}  # fmt: skip


def lots(place: Workshop, job_id: str) -> list[list[int]]:
    """Numbers of the trials of each lot."""
    found: dict[str, list[int]] = {}
    for trial in place.trials(job_id):
        found.setdefault(trial.lot_id, []).append(trial.number)
    return list(found.values())


def test_heads_on_frozen_stages_are_asked_for_together(place: Workshop) -> None:
    job_id = place.job(overrides=HEADS, budget=Budget(trials=40), anchors=False, parallel=2)
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})  # nothing is asked ahead
    advance(place.context, job_id)
    assert lots(place, job_id) == [list(range(16)), list(range(16, 32))]
    rates = [t.recipe["optimizer"]["lr_head"] for t in place.trials(job_id)]
    assert len(set(rates)) == len(rates)
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 32, "nobody is free"

    few = place.job(overrides=HEADS, budget=Budget(trials=7), anchors=False, parallel=3)
    advance(place.context, few)
    assert lots(place, few) == [[0, 1], [2, 3], [4, 5], [6]], "every worker is to have some"


def test_what_cannot_be_trained_together_has_a_lot_of_its_own(place: Workshop) -> None:
    job_id = place.job(overrides=HEADS | {"schedule.freeze.depth": [4, 5]}, budget=Budget(trials=20), parallel=20)
    advance(place.context, job_id)
    trials = {t.number: t.recipe["schedule"]["params"]["depth"] for t in place.trials(job_id)[3:]}
    assert set(trials.values()) == {4, 5}
    for numbers in lots(place, job_id):
        assert len(numbers) == 1 or {trials[n] for n in numbers} == {5}
    sizes = [len(numbers) for numbers in lots(place, job_id)]
    assert sizes[:3] == [1, 1, 1], "fixed recipes come one by one"


def test_advanced_by_many_at_once_a_job_gets_each_number_once(open_workshop: Open) -> None:
    places = [open_workshop() for _ in range(6)]
    job_id = places[0].job(parallel=9)
    barrier = threading.Barrier(len(places))

    def one(place: Workshop) -> None:
        barrier.wait()
        advance(place.context, job_id)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(one, places))
    assert [t.number for t in places[0].trials(job_id)] == list(range(6))


def test_another_process_proposes_the_same(place: Workshop, database_url: str) -> None:
    job_id = place.job(budget=Budget(trials=14), parallel=6)
    advance(place.context, job_id)
    run_all(place, job_id, [0.5 + 0.01 * n for n in range(12)])
    advance(place.context, job_id)
    asked = place.trials(job_id)[13]  # past the start-up draws, with number 12 still running
    output = subprocess.run(
        [sys.executable, "-c", PROPOSE, database_url, job_id, "13"], cwd=ROOT, check=True, capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    ).stdout  # fmt: skip
    assert json.loads(output) == asked.values


def test_take_returns_a_lot_instead_of_ringing_for_it(place: Workshop) -> None:
    job_id = place.job(parallel=2)
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    mine = advance(place.context, job_id, take=True)
    first, second = place.trials(job_id)
    assert mine == first.lot_id
    assert place.heard() == [("run_lot", second.lot_id)]


def test_a_lot_that_waits_is_not_rung_for_at_every_advance(place: Workshop) -> None:
    job_id = place.job()
    advance(place.context, job_id)
    with place.context.transaction() as session:
        due(session, JobRow, ["RUNNING"], quiet_s=1.0)
        due(session, LotRow, ["WAITING"], quiet_s=1.0)
    place.heard()
    advance(place.context, job_id)
    assert place.heard() == []
    place.write(JobRow, job_id, woken_at=0.0)  # resumed
    advance(place.context, job_id)
    assert len(place.heard()) == 2


def test_a_lot_that_has_to_rest_is_neither_rung_for_nor_taken(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=1))
    advance(place.context, job_id)
    place.heard()
    place.write(LotRow, place.trials(job_id)[0].lot_id, not_before=1e12)
    assert advance(place.context, job_id, take=True) is None
    assert place.heard() == []


def test_a_budget_extended_while_it_ends_the_search_counts(open_workshop: Open) -> None:
    """Read before the extension, and judged after it. (SQLite lets nobody write between the two.)"""
    place, other = open_workshop(), open_workshop()
    if place.context.engine.dialect.name == "sqlite":
        pytest.skip("one writer at a time")
    job_id = place.job(budget=Budget(trials=3), parallel=3)
    advance(place.context, job_id)
    run_all(place, job_id, [0.5, 0.7, 0.6])
    with place.context.transaction() as session:
        job = session.get_one(JobRow, job_id)
        with other.context.transaction() as elsewhere:
            extend_budget(elsewhere, job.workspace_id, job_id, {"trials": 5.0})
        assert job.spec["budget"]["trials"] == 3
        _settle(place.context, session, job)
    assert place.state(job_id).state == "RUNNING"
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 5


def test_a_job_that_is_done_is_finished_once(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=3), parallel=3)
    advance(place.context, job_id)
    run_all(place, job_id, [0.5, 0.7, 0.6])
    place.heard()
    advance(place.context, job_id)
    job = place.state(job_id)
    assert (job.state, job.stopped_by) == ("FINISHING", "trials")
    assert place.heard() == [("finish_job", job_id)]


def test_only_the_best_and_the_anchors_keep_their_weights(place: Workshop) -> None:
    job_id = place.job(parallel=6)
    advance(place.context, job_id)
    trials = place.trials(job_id)
    for trial, value in zip(trials, [0.5, 0.7, 0.6, 0.8, 0.9, 0.4], strict=True):
        place.end(trial, value=value, resume=True)
    advance(place.context, job_id)
    kept = [trials[n].id for n in (0, 1, 2, 4)]
    assert place.kept() == {f"{trial_id}/weights.safetensors" for trial_id in kept}
    with place.context.reading() as session:
        assert session.query(BlobRow).filter(BlobRow.key.contains("/trials/")).count() == 4
    assert [t.checkpoint_blob is not None for t in place.trials(job_id)] == [True, True, True, False, True, False]


def test_what_is_left_when_a_job_is_finished_early_is_freed(place: Workshop) -> None:
    """Cancel and keep the best: the trial that was told to stop has a resume point, which nobody will use."""
    job_id = place.job(parallel=3)
    advance(place.context, job_id)
    first, second, third = place.trials(job_id)[:3]
    place.end(first, value=0.5)
    place.write(JobRow, job_id, best_trial_id=first.id)
    place.begin(second.lot_id)
    with place.context.transaction() as session:
        become(session, session.get_one(JobRow, job_id), JobState.FINISHING, stopped_by="user")
    place.heard()
    advance(place.context, job_id)
    assert place.heard() == [], "it waits for the trial that still runs"
    assert [t.state for t in place.trials(job_id)][:3] == ["COMPLETE", "RUNNING", "CANCELLED"]
    with place.context.transaction() as session:
        become(session, session.get_one(TrialRow, second.id), "CANCELLED", resume_blob=None)
        become(session, session.get_one(LotRow, second.lot_id), "DONE")
    advance(place.context, job_id)
    assert place.heard() == [("finish_job", job_id)]
    assert place.kept() == {f"{first.id}/weights.safetensors"}
    assert third.id not in {t.id for t in place.trials(job_id) if t.state != "CANCELLED"}


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED"])
def test_cancel_ends_what_waits_and_frees_every_byte(place: Workshop, state: str) -> None:
    job_id = place.job(parallel=4)
    advance(place.context, job_id)
    place.end(place.trials(job_id)[0], value=0.5, resume=True)
    with place.context.transaction() as session:
        job = session.get_one(JobRow, job_id)
        if state == "PAUSED":
            become(session, job, JobState.PAUSED)
        become(session, job, JobState.CANCELLED, stopped_by="user")
    advance(place.context, job_id)
    assert [t.state for t in place.trials(job_id)][1:] == ["CANCELLED"] * (len(place.trials(job_id)) - 1)
    with place.context.reading() as session:
        assert {lot.state for lot in lots_of(session, job_id)} == {"DONE"}
    assert place.kept() == set()


def test_a_job_that_failed_at_its_end_keeps_what_it_has_found(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=3), parallel=3)
    advance(place.context, job_id)
    run_all(place, job_id, [0.5, 0.7, 0.6])
    advance(place.context, job_id)
    with place.context.transaction() as session:
        become(session, session.get_one(JobRow, job_id), JobState.FAILED, error={"code": "x", "detail": "y"})
    advance(place.context, job_id)
    assert len(place.kept()) == 3


def test_a_job_whose_trials_all_fail_alike_fails_early(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=50), parallel=3)
    advance(place.context, job_id)
    trials = place.trials(job_id)
    for trial in trials[:2]:
        place.end(trial, "FAILED", error={"code": "out_of_memory", "detail": "too large"})
    advance(place.context, job_id)
    assert place.state(job_id).state == "RUNNING"
    place.end(trials[2], "FAILED", error={"code": "out_of_memory", "detail": "too large"})
    advance(place.context, job_id)
    job = place.state(job_id)
    assert (job.state, job.stopped_by) == ("FAILED", "failures")
    assert job.error is not None
    assert (job.error["code"], job.error["cause"]) == ("every_trial_failed", "out_of_memory")
    assert {t.state for t in place.trials(job_id)} == {"FAILED", "CANCELLED"}


def test_failures_of_different_kinds_do_not_end_a_job(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=50), parallel=3)
    advance(place.context, job_id)
    for trial, code in zip(place.trials(job_id)[:3], ["diverged", "diverged", "crashed"], strict=True):
        place.end(trial, "FAILED", error={"code": code, "detail": "so it was"})
    advance(place.context, job_id)
    assert place.state(job_id).state == "RUNNING"


@pytest.mark.parametrize(("value", "state"), [(0.5, "FINISHING"), (None, "FAILED")])
def test_a_budget_of_time_ends_a_job_once_nothing_runs(place: Workshop, value: float | None, state: str) -> None:
    job_id = place.job(budget=Budget(wall_s=100.0), parallel=3)
    advance(place.context, job_id)
    first, second, _ = place.trials(job_id)[:3]
    if value is not None:
        place.end(first, value=value)
    fence = place.begin(second.lot_id)
    assert fence == 1
    place.write(JobRow, job_id, started_at=1.0, paused_s=0.0)
    advance(place.context, job_id)
    assert place.state(job_id).state == "RUNNING", "the running trial was told to stop, and is waited for"
    assert "WAITING" not in {t.state for t in place.trials(job_id)}
    with place.context.transaction() as session:
        become(session, session.get_one(TrialRow, second.id), "CANCELLED")
        become(session, session.get_one(LotRow, second.lot_id), "DONE")
    advance(place.context, job_id)
    job = place.state(job_id)
    assert (job.state, job.stopped_by) == (state, "time")
    assert value is not None or (job.error is not None and job.error["code"] == "budget_too_small")


def test_pauses_are_no_part_of_the_time_that_is_spent(place: Workshop) -> None:
    job_id = place.job()
    with place.context.reading() as session:
        job = session.get_one(JobRow, job_id)
        begun = elapsed_s(session, job)
    place.write(JobRow, job_id, started_at=JobRow.started_at - 100.0, paused_s=90.0)
    with place.context.reading() as session:
        assert 10.0 <= elapsed_s(session, session.get_one(JobRow, job_id)) - begun < 20.0
    place.write(JobRow, job_id, state="PAUSED", paused_at=JobRow.started_at + 95.0)
    with place.context.reading() as session:
        assert elapsed_s(session, session.get_one(JobRow, job_id)) == pytest.approx(5.0, abs=0.01)


def test_a_space_without_one_legal_recipe_fails_the_job_or_ends_it_with_what_it_has(place: Workshop) -> None:
    impossible = {"distillation": "soft_targets"}  # without a teacher
    job_id = place.job(overrides=impossible, anchors=False)
    advance(place.context, job_id)
    job = place.state(job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == ("FAILED", "no_legal_recipe")

    job_id = place.job(overrides=impossible, parallel=4)
    advance(place.context, job_id)
    assert {t.state for t in place.trials(job_id)} == {"CANCELLED"}, "nothing to run: it failed"
    assert place.state(job_id).state == "FAILED"

    job_id = place.job(overrides=impossible, parallel=1, budget=Budget(trials=4))
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    for value in (0.5, 0.6, 0.7):
        advance(place.context, job_id)
        run_all(place, job_id, [value])
    advance(place.context, job_id)
    job = place.state(job_id)
    assert (job.state, job.stopped_by) == ("FINISHING", "failures")


def test_jobs_that_wait_for_a_leased_handler_are_rung_for(place: Workshop) -> None:
    for state, handler in (("WAITING", "probe_job"), ("PROBING", "probe_job"), ("FINISHING", "finish_job")):
        job_id = place.job(state)
        advance(place.context, job_id)
        assert place.heard() == [(handler, job_id)]
    for state in ("PAUSED", "COMPLETE", "FAILED", "CANCELLED"):
        advance(place.context, place.job(state))
        assert place.heard() == []
    advance(place.context, "job_that_was_deleted")


def test_numbers_have_no_gap_after_a_lost_race(open_workshop: Open) -> None:
    """The loser's proposal is forgotten, and its study goes on with the winner's."""
    first, second = open_workshop(), open_workshop()
    job_id = first.job(budget=Budget(trials=12), parallel=1)
    for _ in range(6):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda place: advance(place.context, job_id), (first, second)))
        run_all(first, job_id, [0.5] * sum(t.state == "WAITING" for t in first.trials(job_id)))
    numbers = [t.number for t in first.trials(job_id)]
    assert all(b - a == 1 for a, b in pairwise(numbers))
    assert len(numbers) == 12
