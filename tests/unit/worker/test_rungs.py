"""Trials that rest at a rung: promoted when they belong to the best, ended with the search, never lost in between."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from domain.job import Budget
from domain.states import JobState
from domain.trial import Report, TrialOutcome
from store.blob_rows import add_blob
from store.jobs import pause, resume
from store.leases import hold
from store.moves import become
from store.tables import EventRow, JobRow, LotRow, TrialRow
from store.trials import lots_of, record_reports, set_trial_facts
from tests.unit.worker.conftest import Open, Workshop
from worker.advance import advance
from worker.claims import claim_lot
from worker.lots import Progress, _end_trial, _pruner_wish, begin, return_lot
from worker.sweep import sweep

RUNG = 7 / 60  # of a ninth, on the grid


def report(place: Workshop, trial: TrialRow, fence: int, value: float, share: float = 0.15) -> None:
    shares = [k / 60 for k in range(1, round(share * 60) + 1)]
    points = [
        Report(trial_id=trial.id, fold=0, phase=0, step=step, share=share, value=value, cost_s=step)
        for step, share in enumerate(shares, 1)
    ]
    with place.context.transaction() as session:
        record_reports(session, trial.lot_id, fence, points)


def rest(place: Workshop, trial: TrialRow, value: float) -> None:
    """The trial is told to rest at the first rung, as a worker leaves it."""
    fence = place.begin(trial.lot_id)
    report(place, trial, fence, value)
    key = f"{trial.workspace_id}/trials/{trial.id}/{fence}/resume-last.zip"
    info = place.context.blobs.put(key, io.BytesIO(b"weights"))
    with place.context.transaction() as session:
        lot = hold(session, LotRow, trial.lot_id, fence)
        row = session.get_one(TrialRow, trial.id)
        add_blob(session, trial.workspace_id, key, info, trial.id)
        set_trial_facts(session, row, resume_blob=key)
        become(session, row, "PAUSED", value=value, attrs={**row.attrs, "rung": RUNG})
        become(session, lot, "PAUSED")


def searching(place: Workshop, n: int, *, trials: int, parallel: int = 1, pruner: str = "halving") -> str:
    """A job without anchors whose first `n` trials rest at a rung, trial k with accuracy 0.9 - k / 100."""
    job_id = place.job(anchors=False, budget=Budget(trials=trials), parallel=max(n, 1), pruner=pruner)
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    if n:
        advance(place.context, job_id)
    for trial in place.trials(job_id)[:n]:
        rest(place, trial, 0.9 - trial.number / 100)
    place.heard()
    with place.context.transaction() as session:
        job = session.get_one(JobRow, job_id)
        job.spec = {**job.spec, "parallel": parallel}
    return job_id


def states(place: Workshop, job_id: str) -> list[str]:
    return [t.state for t in place.trials(job_id)]


def test_promotion_goes_before_a_new_recipe_and_one_place_takes_one(place: Workshop) -> None:
    """Six have reached the rung: the best two may go on, and there is room for one at a time."""
    job_id = searching(place, 6, trials=20)
    advance(place.context, job_id)
    assert states(place, job_id) == ["WAITING", *["PAUSED"] * 5]
    best = place.trials(job_id)[0]
    assert place.heard() == [("run_lot", best.lot_id)]
    assert best.attrs["passed_rung"] == pytest.approx(RUNG)
    assert "rung" not in best.attrs
    place.end(best, value=0.95)
    advance(place.context, job_id)
    assert states(place, job_id)[:3] == ["COMPLETE", "WAITING", "PAUSED"]
    place.end(place.trials(job_id)[1], value=0.94)
    advance(place.context, job_id)
    assert states(place, job_id)[2:] == [*["PAUSED"] * 4, "WAITING"], "nobody else belongs: a new recipe"


def test_a_promoted_trial_is_claimed_with_its_resume_point_and_a_fresh_count_of_attempts(place: Workshop) -> None:
    job_id = searching(place, 3, trials=20)
    first = place.trials(job_id)[0]
    lot_id = advance(place.context, job_id, take=True)
    assert lot_id == first.lot_id
    claimed = claim_lot(place.context, first.lot_id)
    assert claimed is not None
    assert (claimed.attempt, [t.number for t in claimed.trials]) == (1, [0])
    assert claimed.trials[0].resume_blob is not None
    assert states(place, job_id) == ["RUNNING", "PAUSED", "PAUSED"]


def test_promoted_by_many_at_once_it_is_promoted_once(open_workshop: Open) -> None:
    places = [open_workshop() for _ in range(4)]
    job_id = searching(places[0], 6, trials=6, parallel=9)
    barrier = threading.Barrier(len(places))

    def one(place: Workshop) -> None:
        barrier.wait()
        advance(place.context, job_id)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(one, places))
    assert states(places[0], job_id) == ["WAITING", "WAITING", *["PAUSED"] * 4]
    with places[0].context.reading() as session:
        told = session.query(EventRow).filter_by(job_id=job_id, kind="trial.state").all()
    assert sorted(e.body["number"] for e in told if e.body["state"] == "WAITING") == [0, 1]


def test_nobody_claims_a_lot_that_rests_and_the_sweep_leaves_it_alone(place: Workshop) -> None:
    job_id = searching(place, 2, trials=2)
    for trial in place.trials(job_id):
        place.write(TrialRow, trial.id, attrs={**trial.attrs, "rung": RUNG})
        assert claim_lot(place.context, trial.lot_id) is None
    place.write(JobRow, job_id, state="PAUSED")
    sweep(place.context)
    assert states(place, job_id) == ["PAUSED", "PAUSED"]
    assert place.heard() == []


def test_a_search_that_has_tried_all_ends_with_what_rests(place: Workshop) -> None:
    """Of four at the rung one may go on; once it is COMPLETE nothing is left to run: the others are PRUNED."""
    job_id = searching(place, 4, trials=4)
    advance(place.context, job_id)
    assert states(place, job_id) == ["WAITING", "PAUSED", "PAUSED", "PAUSED"]
    place.end(place.trials(job_id)[0], value=0.97)
    assert len(place.kept()) == 5, "weights of the first, and four resume points"
    advance(place.context, job_id)
    assert place.state(job_id).state == "FINISHING"
    trials = place.trials(job_id)
    assert [t.state for t in trials] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED"]
    assert [t.value for t in trials[1:]] == pytest.approx([0.89, 0.88, 0.87]), "what they showed is kept"
    with place.context.reading() as session:
        assert {lot.state for lot in lots_of(session, job_id)} == {"DONE"}
    advance(place.context, job_id)
    assert place.kept() == {f"{trials[0].id}/weights.safetensors"}


def test_a_larger_budget_lets_it_go_on_instead(place: Workshop) -> None:
    job_id = searching(place, 4, trials=5)
    advance(place.context, job_id)
    place.end(place.trials(job_id)[0], value=0.97)
    advance(place.context, job_id)
    assert states(place, job_id) == ["COMPLETE", "PAUSED", "PAUSED", "PAUSED", "WAITING"]
    assert place.state(job_id).state == "RUNNING"


@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
def test_a_job_that_is_paused_and_resumed_knows_who_rested_where(place: Workshop, pruner: str) -> None:
    """The job's pause catches one trial in the middle; the others rest. Resumed, the first goes on at once."""
    job_id = searching(place, 3, trials=4, pruner=pruner)
    with place.context.transaction() as session:
        for trial in place.trials(job_id)[:1]:  # it was promoted, and runs
            row = session.get_one(TrialRow, trial.id)
            become(session, row, "WAITING", attrs={"passed_rung": RUNG})
            become(session, session.get_one(LotRow, trial.lot_id), "WAITING")
    caught = place.trials(job_id)[0]
    fence = place.begin(caught.lot_id)
    workspace_id = place.state(job_id).workspace_id
    with place.context.transaction() as session:
        pause(session, workspace_id, job_id)
    with place.context.transaction() as session:
        become(session, session.get_one(TrialRow, caught.id), "PAUSED")
        return_lot(session, hold(session, LotRow, caught.lot_id, fence))
    advance(place.context, job_id)
    assert states(place, job_id) == ["PAUSED"] * 3
    with place.context.transaction() as session:
        resume(session, workspace_id, job_id)
    place.heard()
    assert advance(place.context, job_id, take=True) == caught.lot_id
    claimed = claim_lot(place.context, caught.lot_id)
    assert claimed is not None
    assert states(place, job_id)[:3] == ["RUNNING", "PAUSED", "PAUSED"]


@pytest.mark.parametrize(("ended", "state"), [("FINISHING", "PRUNED"), ("CANCELLED", "PRUNED")])
def test_a_job_that_is_ended_by_its_user_frees_what_rests(place: Workshop, ended: str, state: str) -> None:
    job_id = searching(place, 3, trials=9)
    with place.context.transaction() as session:
        become(session, session.get_one(JobRow, job_id), JobState(ended), stopped_by="user")
    advance(place.context, job_id)
    assert states(place, job_id) == [state] * 3
    advance(place.context, job_id)
    assert place.kept() == set()


def test_resting_trials_are_evidence_that_not_everything_fails(place: Workshop) -> None:
    job_id = searching(place, 4, trials=20)
    for _ in range(3):
        advance(place.context, job_id)
        waiting = next(t for t in place.trials(job_id) if t.state == "WAITING")
        place.end(waiting, "FAILED", error={"code": "out_of_memory", "detail": "too large"})
    advance(place.context, job_id)
    assert place.state(job_id).state == "RUNNING"


def comes_to_rest(place: Workshop, trial: TrialRow, value: float) -> None:
    """As the worker that trains it writes it down."""
    claimed = claim_lot(place.context, trial.lot_id)
    assert claimed is not None
    progress = begin(claimed)
    progress.wishes[trial.id], progress.rungs[trial.id] = ("pause", "rung"), RUNG
    outcome = TrialOutcome(trial_id=trial.id, state="PAUSED", value=value)
    _end_trial(place.context, claimed, progress, outcome)


def test_patience_counts_those_that_came_to_rest_since_the_best(place: Workshop) -> None:
    job_id = place.job(anchors=False, budget=Budget(trials=50, patience=2), pruner="halving")
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    for rests in (True, False, True):
        advance(place.context, job_id)
        trial = next(t for t in place.trials(job_id) if t.state == "WAITING")
        if rests:
            comes_to_rest(place, trial, 0.5)
        else:
            place.end(trial, value=0.9)
    assert states(place, job_id) == ["PAUSED", "COMPLETE", "PAUSED"]
    advance(place.context, job_id)
    assert place.state(job_id).state == "RUNNING", "the first rested before there was a best"
    comes_to_rest(place, place.trials(job_id)[3], 0.4)
    advance(place.context, job_id)
    assert (place.state(job_id).state, place.state(job_id).stopped_by) == ("FINISHING", "patience")
    assert states(place, job_id) == ["PRUNED", "COMPLETE", "PRUNED", "PRUNED"]


def test_those_that_wait_for_company_are_not_in_vain(place: Workshop) -> None:
    """The best is an anchor, and nobody could leave the first rung yet."""
    job_id = place.job(anchors=False, budget=Budget(trials=50, patience=2), pruner="halving")
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    for value in (None, 0.5, 0.4, 0.3):
        advance(place.context, job_id)
        trial = next(t for t in place.trials(job_id) if t.state == "WAITING")
        if value is None:
            place.write(TrialRow, trial.id, anchor="fine_tuning")
            place.end(trial, value=0.9)
        else:
            comes_to_rest(place, trial, value)
    advance(place.context, job_id)
    assert place.state(job_id).state == "RUNNING"


@pytest.mark.parametrize("n", [1, 2])
def test_a_search_of_one_or_two_trials_completes_the_better_one(n: int, place: Workshop) -> None:
    job_id = searching(place, n, trials=n)
    advance(place.context, job_id)
    assert states(place, job_id) == ["WAITING", "PAUSED"][:n]
    place.end(place.trials(job_id)[0], value=0.9)
    advance(place.context, job_id)
    assert place.state(job_id).state == "FINISHING"
    assert states(place, job_id) == ["COMPLETE", "PRUNED"][:n]


def test_a_worker_that_takes_a_trial_over_does_not_ask_at_rungs_that_lie_behind_it(place: Workshop) -> None:
    """It was let go on at its first rung; by now five better ones have come there."""
    job_id = place.job(anchors=False, budget=Budget(trials=20), parallel=6, pruner="halving")
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    advance(place.context, job_id)
    first, *others = place.trials(job_id)
    fence = place.begin(first.lot_id)
    report(place, first, fence, 0.5)
    with place.context.transaction() as session:
        return_lot(session, hold(session, LotRow, first.lot_id, fence))
    place.write(LotRow, first.lot_id, owner=None, lease_until=None)
    for trial in others[:5]:
        rest(place, trial, 0.9)
    claimed = claim_lot(place.context, first.lot_id)
    assert claimed is not None
    wishes = []
    for progress in (begin(claimed), Progress()):
        progress.curves[first.id] = [(9 / 60, 0.5), (10 / 60, 0.5)]
        wishes.append(_pruner_wish(place.context, claimed, progress, claimed.trials[0]))
    assert wishes == [("go", ""), ("pause", "rung")]
