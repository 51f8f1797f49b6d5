"""The end of a search belongs to its best recipes, trained again with other seeds; and who is chosen of them."""

import pytest

from domain.choice import Measured
from domain.confirming import Repeat, confirmed
from domain.job import Budget, Confirm, JobSpec, Limit
from store.trials import sketch_trials
from tests.unit.worker.conftest import Workshop, make_spec
from worker.advance import advance
from worker.finish_order import chosen_recipe, combining
from worker.repeats import repeats_of

VALUES = [0.99, 0.2, 0.3, 0.4, 0.9, 0.5, 0.8, 0.6, 0.7, 0.1, 0.1, 0.1]  # the first is the linear probe's


def run(place: Workshop, job_id: str) -> None:
    """Every trial becomes COMPLETE with its value until the budget is spent."""
    for _ in range(40):
        advance(place.context, job_id)
        for trial in place.trials(job_id):
            if trial.state == "WAITING":
                place.end(trial, value=VALUES[trial.number])
        if place.state(job_id).state != "RUNNING":
            return
    raise AssertionError("the job did not end")


def test_the_last_trials_repeat_the_best_recipes_with_other_seeds(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=12), confirm=Confirm(top=2, seeds=1))
    run(place, job_id)
    trials = place.trials(job_id)
    assert len(trials) == 12, "inside the budget"
    assert [t.attrs.get("of") for t in trials[-2:]] == [4, 6], "the probe is solved, not trained: no seed changes it"
    assert all(t.attrs.get("origin") is None for t in trials[3:10])
    for repeat in trials[-2:]:
        first = trials[repeat.attrs["of"]]
        assert repeat.values == first.values
        assert repeat.recipe["seed"] != first.recipe["seed"]
        assert {**repeat.recipe, "seed": 0} == {**first.recipe, "seed": 0}
        assert repeat.checkpoint_blob
        assert first.checkpoint_blob, "any seed of a repeated recipe may be handed back"
    with place.context.reading() as session:
        seen = confirmed({t.number: t.value or 0.0 for t in trials}, repeats_of(sketch_trials(session, job_id)))
    assert [(c.number, c.values) for c in seen] == [(4, (0.9, 0.1)), (6, (0.8, 0.1))]


def test_repeats_take_no_more_than_a_third_of_the_search(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=9), confirm=Confirm(top=3, seeds=5))
    run(place, job_id)
    assert [t.number for t in place.trials(job_id) if t.attrs.get("origin") == "repeat"] == [7, 8]


def test_nothing_is_repeated_unasked(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=9))
    run(place, job_id)
    assert not any(t.attrs.get("origin") == "repeat" for t in place.trials(job_id))


def test_confirmed_recipes_are_chosen_by_their_mean_and_the_best_seed_is_handed_back() -> None:
    values = {0: 0.55, 3: 0.9, 4: 0.85, 5: 0.7, 8: 0.3, 9: 0.8}
    trials = [Measured(f"tr_{n}", n, {"accuracy": v}) for n, v in values.items()]
    ranked = sorted(trials, key=lambda t: -t.values["accuracy"])
    of = {8: 3, 9: 4}
    seeds = confirmed(values, [Repeat(*pair) for pair in of.items()])
    choice, recipe = chosen_recipe(make_spec(), ranked, ranked, seeds, of, {0})
    assert (choice.winner.number, recipe) == (4, {4, 9}), "mean 0.825 against 0.6; 5 was not confirmed"
    without = [t for t in ranked if t.number != 4]
    assert chosen_recipe(make_spec(), ranked, without, seeds, of, {0})[0].winner.number == 9
    assert chosen_recipe(make_spec(), ranked, ranked, [], {}, {0})[0].winner.number == 3


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, ("soup", "ensemble")),
        ({"combine": False}, ()),
        ({"limits": (Limit(objective="latency_ms", at_most=20),)}, ("soup",)),
        ({"limits": (Limit(objective="source_accuracy", at_least=0.5),)}, ()),
    ],
)
def test_what_the_job_asks_of_a_network_says_what_may_be_combined(changes: dict, allowed: tuple[str, ...]) -> None:
    spec: JobSpec = make_spec(**changes)
    assert combining(spec) == allowed
