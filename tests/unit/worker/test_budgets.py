"""Every part of a budget over real rows: the search ends, and what still runs is told to stop or not."""

from typing import Any

import pytest

from domain.job import Budget, JobSpec, Objective
from store.tables import JobRow, LotRow, TrialRow
from tests.unit.worker.conftest import Workshop
from worker.advance import advance
from worker.budgets import why_stop


def stop_of(place: Workshop, job_id: str) -> str | None:
    """What ends even the trials that run."""
    with place.context.reading() as session:
        job = session.get_one(JobRow, job_id)
        return why_stop(session, job, JobSpec.model_validate(job.spec))


def a_job(place: Workshop, *, parallel: int = 1, elapsed_s: float = 0.0, estimate: dict[str, float] | None = None,
          **changes: Any) -> str:  # fmt: skip
    """A job that has run for so long already and whose trials are long."""
    job_id = place.job(parallel=parallel, **changes)
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0} | (estimate or {}), paused_s=0.0,
                started_at=JobRow.started_at - elapsed_s)  # fmt: skip
    return job_id


def next_ends(place: Workshop, job_id: str, state: str = "COMPLETE", **changes: Any) -> None:
    advance(place.context, job_id)
    trial = next(t for t in place.trials(job_id) if t.state == "WAITING")
    place.end(trial, state, **changes)


def outcome(place: Workshop, job_id: str) -> tuple[str, str | None]:
    advance(place.context, job_id)
    job = place.state(job_id)
    return job.state, job.stopped_by


def test_training_time_is_counted_over_all_trials_running_ones_included(place: Workshop) -> None:
    job_id = a_job(place, budget=Budget(device_s=100.0), parallel=2)
    next_ends(place, job_id, value=0.5)
    advance(place.context, job_id)
    running = next(t for t in place.trials(job_id) if t.state == "WAITING")
    place.begin(running.lot_id)
    place.write(JobRow, job_id, cost_s=99.0)
    assert stop_of(place, job_id) is None
    place.write(JobRow, job_id, cost_s=100.0)
    assert stop_of(place, job_id) == "device_time"
    assert outcome(place, job_id) == ("RUNNING", None), "what runs is waited for"
    place.write(TrialRow, running.id, state="CANCELLED")
    place.write(LotRow, running.lot_id, state="DONE")
    assert outcome(place, job_id) == ("FINISHING", "device_time")


@pytest.mark.parametrize(("name", "values"), [("accuracy", (0.6, 0.85)), ("log_loss", (0.9, 0.75))])
def test_a_target_ends_the_search_when_a_trial_reaches_it(
    place: Workshop, name: Any, values: tuple[float, float]
) -> None:
    job_id = a_job(place, budget=Budget(trials=50, target=0.8), objectives=(Objective(name=name),))
    next_ends(place, job_id, value=values[0])
    assert stop_of(place, job_id) is None
    next_ends(place, job_id, value=values[1])
    assert stop_of(place, job_id) == "target"
    assert outcome(place, job_id) == ("FINISHING", "target")


def test_a_failed_trial_reaches_no_target(place: Workshop) -> None:
    job_id = a_job(place, budget=Budget(trials=50, target=0.8))
    error = {"code": "diverged", "detail": "not finite"}
    next_ends(place, job_id, "FAILED", value=0.99, error=error)
    next_ends(place, job_id, value=0.5)
    assert outcome(place, job_id)[0] == "RUNNING"
    assert place.state(job_id).best_trial_id == place.trials(job_id)[1].id


def test_patience_ends_the_search_after_so_many_searched_trials_without_a_new_best(place: Workshop) -> None:
    job_id = a_job(place, budget=Budget(trials=50, patience=3))
    for value in (0.7, 0.6, 0.5):  # the anchors, which need no patience
        next_ends(place, job_id, value=value)
    next_ends(place, job_id, value=0.75)
    next_ends(place, job_id, value=0.75)
    next_ends(place, job_id, "PRUNED", value=0.9)
    next_ends(place, job_id, "FAILED", error={"code": "crashed", "detail": "so it was"})
    assert outcome(place, job_id)[0] == "RUNNING"
    next_ends(place, job_id, value=0.74)
    assert stop_of(place, job_id) == "patience"
    assert outcome(place, job_id) == ("FINISHING", "patience")


def test_the_finish_is_kept_of_a_budget_of_time(place: Workshop) -> None:
    """Of 100 s, 20 s are kept: training ends after 80 s, or after 95 s where there is nothing yet to finish."""
    budget, estimate = Budget(wall_s=100.0), {"finish_s": 20.0}
    job_id = a_job(place, budget=budget, elapsed_s=85.0, estimate=estimate)
    assert stop_of(place, job_id) is None
    next_ends(place, job_id, value=0.5)
    assert stop_of(place, job_id) == "time"
    assert outcome(place, job_id) == ("FINISHING", "time")
    later = a_job(place, budget=budget, elapsed_s=96.0, estimate=estimate)
    assert stop_of(place, later) == "time"


def test_no_trial_begins_that_would_be_stopped_before_its_first_value(place: Workshop) -> None:
    """After 65 s of 80 s, a trial that has its first value after 20 s is not begun; the one that runs goes on."""
    job_id = a_job(place, budget=Budget(wall_s=100.0), estimate={"finish_s": 20.0, "first_value_s": 20.0}, parallel=2)
    next_ends(place, job_id, value=0.5)
    advance(place.context, job_id)
    running = next(t for t in place.trials(job_id) if t.state == "WAITING")
    place.begin(running.lot_id)
    n_before = len(place.trials(job_id))
    place.write(JobRow, job_id, started_at=JobRow.started_at - 65.0)
    assert outcome(place, job_id) == ("RUNNING", None)
    assert stop_of(place, job_id) is None
    assert len(place.trials(job_id)) == n_before
    assert "WAITING" not in {t.state for t in place.trials(job_id)}


def test_a_number_of_trials_stops_none_that_runs(place: Workshop) -> None:
    job_id = a_job(place, budget=Budget(trials=1))
    next_ends(place, job_id, value=0.5)
    assert stop_of(place, job_id) is None
    assert outcome(place, job_id) == ("FINISHING", "trials")
