"""Cheap trials in a job's rows: searched ones are cheap first, the best come again in full, none of them can win."""

from typing import Any

import pytest

from domain.job import Budget, Fidelity, JobSpec
from domain.recipe import Recipe
from store.tables import JobRow, TrialRow
from store.trials import sketch_trials
from tests.unit.worker.conftest import Workshop
from worker.advance import advance
from worker.budgets import attempts_of
from worker.searches import SEARCHES, read_history

FRACTION = Fidelity(dimension="fraction", low=0.25)


def job_with(place: Workshop, fidelity: Fidelity, **changes: Any) -> str:
    job_id = place.job(fidelity=fidelity, anchors=False, parallel=1, **changes)
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    return job_id


def run(place: Workshop, job_id: str, values: dict[int, float]) -> list[TrialRow]:
    """One trial after the other ends, a cheap one PRUNED with its value, until the job has no more of them."""
    for number in range(len(values)):
        advance(place.context, job_id)
        trial = place.trials(job_id)[number]
        place.end(trial, "PRUNED" if trial.attrs.get("origin") == "cheap" else "COMPLETE", value=values[number])
    return place.trials(job_id)


def test_searched_trials_are_cheap_first_and_the_best_of_three_comes_again_in_full(place: Workshop) -> None:
    """0, 1, 2 cheap; 3 is the best of them; 4, 5, 6 cheap; 7 the best that is left; 8 cheap; 9 is the last: in full."""
    job_id = job_with(place, FRACTION, budget=Budget(trials=10))
    values = {0: 0.4, 1: 0.6, 2: 0.5, 3: 0.8, 4: 0.1, 5: 0.55, 6: 0.2, 7: 0.7, 8: 0.9, 9: 0.95}
    trials = run(place, job_id, values)
    assert [t.attrs.get("origin") for t in trials] == [
        *["cheap"] * 3, "promoted", *["cheap"] * 3, "promoted", "cheap", "promoted",
    ]  # fmt: skip
    assert [t.attrs["of"] for t in trials if t.attrs["origin"] == "promoted"] == [1, 5, 8]
    cheap, full = (Recipe.model_validate(trials[n].recipe) for n in (1, 3))
    assert trials[3].values == trials[1].values
    assert (cheap.data.fraction, full.data.fraction) == (0.25, 1.0)
    assert cheap.steps == round(full.steps / 4)
    assert trials[1].attrs["fidelity"] == {"data.fraction": 0.25}
    advance(place.context, job_id)
    job = place.state(job_id)
    assert job.state == "FINISHING"
    assert job.best_trial_id == trials[9].id


def test_pixels_are_lowered_and_steps_left_alone(place: Workshop) -> None:
    job_id = job_with(place, Fidelity(dimension="resolution", low=64), budget=Budget(trials=10))
    trials = run(place, job_id, {0: 0.4, 1: 0.6, 2: 0.5, 3: 0.8})
    cheap, full = (Recipe.model_validate(trials[n].recipe) for n in (1, 3))
    assert (cheap.data.resolution, cheap.steps) == (64, full.steps)
    assert full.data.resolution == trials[1].values["data.resolution"] > 64


def test_anchors_are_never_cheap(place: Workshop) -> None:
    job_id = place.job(fidelity=FRACTION, parallel=20)
    advance(place.context, job_id)
    trials = place.trials(job_id)
    assert [Recipe.model_validate(t.recipe).data.fraction for t in trials] == [1.0, 1.0, 1.0, 0.25, 0.25, 1.0]
    assert [t.attrs.get("origin") for t in trials] == [None, None, None, "cheap", "cheap", None]


def test_a_cheap_trial_leads_nowhere_and_teaches_the_sampler_as_a_pruned_one(place: Workshop) -> None:
    job_id = job_with(place, FRACTION, budget=Budget(trials=10))
    run(place, job_id, {0: 0.4, 1: 0.6, 2: 0.5})
    assert place.state(job_id).best_trial_id is None
    with place.context.reading() as session:
        spec = JobSpec.model_validate(session.get_one(JobRow, job_id).spec)
        assert [a.searched for a in attempts_of(sketch_trials(session, job_id))] == [False] * 3, "no attempt in vain"
        with SEARCHES.of(job_id, spec) as search:
            search.finished.clear()
            past = read_history(session, job_id, search)
    assert [(p.state, p.comparable, p.curve) for p in past[:3]] == [
        ("PRUNED", False, ((pytest.approx(1 / 3), value),)) for value in (0.4, 0.6, 0.5)
    ]


def test_a_failed_one_is_not_promoted(place: Workshop) -> None:
    job_id = job_with(place, FRACTION, budget=Budget(trials=20))
    for number in range(4):
        advance(place.context, job_id)
        trial = place.trials(job_id)[number]
        if number == 1:
            place.end(trial, "FAILED", error={"code": "diverged", "detail": "loss"})
        else:
            place.end(trial, "PRUNED", value=0.1 * number)
    advance(place.context, job_id)
    assert [t.attrs.get("of") for t in place.trials(job_id)] == [None, None, None, None, 3]
