"""The end of a search belongs to its best recipes, trained again with other seeds; and who is chosen of them."""

import pytest

from domain.choice import Measured
from domain.confirming import Repeat, confirmed
from domain.job import Budget, Confirm, JobSpec, Limit, Teacher
from domain.recipe import Recipe
from domain.states import JobState
from store.moves import become
from store.tables import JobRow
from store.trials import sketch_trials
from tests.unit.worker.conftest import Workshop, make_spec
from worker.advance import advance
from worker.finish_order import chosen_recipe, combining
from worker.repeats import leading, repeatable, repeats_of

VALUES = [0.99, 0.2, 0.3, 0.4, 0.9, 0.5, 0.8, 0.6, 0.7, 0.1, 0.1, 0.1]  # the first is the linear probe's


def run(place: Workshop, job_id: str, values: list[float] = VALUES) -> None:
    """Every trial becomes COMPLETE with its value until the budget is spent."""
    for _ in range(40):
        advance(place.context, job_id)
        for trial in place.trials(job_id):
            if trial.state == "WAITING":
                place.end(trial, value=values[trial.number])
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
    winner, recipe = chosen_recipe(make_spec(), ranked, seeds, of, {0, 3, 4})
    assert (winner.number, recipe) == (4, {4, 9}), "mean 0.825 against 0.6; 5 was not confirmed"
    without = [t for t in ranked if t.number != 4]
    assert chosen_recipe(make_spec(), without, seeds, of, {0, 3, 4})[0].number == 9
    assert chosen_recipe(make_spec(), ranked, [], {}, {0})[0].number == 3


def test_a_recipe_of_the_best_that_was_not_confirmed_stands_with_its_one_value() -> None:
    """The budget was extended after 3 was repeated: 6 and 7 came to lead, and a target ended the search."""
    values = {0: 0.55, 3: 0.8, 5: 0.7, 6: 0.95, 7: 0.9, 4: 0.82}
    trials = [Measured(f"tr_{n}", n, {"accuracy": v}) for n, v in values.items()]
    seeds, of = confirmed(values, [Repeat(4, 3)]), {4: 3}
    assert chosen_recipe(make_spec(), trials, seeds, of, {0, 6, 7})[0].number == 6
    lucky = confirmed({**values, 8: 0.2, 9: 0.1}, [Repeat(4, 3), Repeat(8, 6), Repeat(9, 7)])
    assert chosen_recipe(make_spec(), trials, lucky, {**of, 8: 6, 9: 7}, {0, 6, 7})[0].number == 4, "the best of 3's"


def test_a_seed_that_keeps_the_limit_stands_for_its_recipe() -> None:
    limited = make_spec(limits=(Limit(objective="latency_ms", at_most=10),))
    seen = {3: (0.8, 9.0), 5: (0.9, 10.5), 6: (0.85, 9.5)}  # 6 repeats 5, and was measured to be quicker
    trials = [Measured(f"tr_{n}", n, {"accuracy": a, "latency_ms": ms}) for n, (a, ms) in seen.items()]
    seeds = confirmed({n: a for n, (a, _) in seen.items()}, [Repeat(6, 5)])
    assert chosen_recipe(limited, trials, seeds, {6: 5}, {3, 5})[0].number == 6


def test_an_anchor_is_not_repeated(place: Workshop) -> None:
    """It would come back as a trial of the search, and be compared with itself."""
    values = [0.5, 0.99, 0.98, 0.3, 0.4, 0.9, 0.8, 0.1, 0.1]
    job_id = place.job(budget=Budget(trials=9), confirm=Confirm(top=2, seeds=1))
    run(place, job_id, values)
    assert [t.attrs.get("of") for t in place.trials(job_id)[-2:]] == [5, 6]


def test_what_a_trial_of_the_job_taught_is_not_repeated(place: Workshop) -> None:
    """Its teacher would be another one by then: the best so far, which may be the very trial that is repeated."""
    taught = {"distillation": "soft_targets"}
    own = Teacher(kind="best", ref="best")
    job_id = place.job(overrides=taught, teacher=own, budget=Budget(trials=9), confirm=Confirm(top=2, seeds=1))
    run(place, job_id)
    trials = place.trials(job_id)
    assert len(trials) == 9
    assert all(t.recipe["distillation"]["name"] == "soft_targets" for t in trials[3:])
    assert not any(t.attrs.get("origin") == "repeat" for t in trials)
    with place.context.reading() as session:
        spec = JobSpec.model_validate(place.state(job_id).spec)
        assert leading(session, job_id, spec) == []
    before = Teacher(kind="job", ref="job_1", trial_id="tr_1", blob="b", recipe=Recipe.model_validate(trials[1].recipe))
    assert repeatable(make_spec(teacher=before), trials[3]), "a teacher from before the job stays the same"


def test_seeds_of_a_recipe_keep_their_weights_until_the_job_is_finished(place: Workshop) -> None:
    job_id = place.job(budget=Budget(trials=12), confirm=Confirm(top=2, seeds=1))  # keep_top is 1
    run(place, job_id)
    advance(place.context, job_id)
    assert place.state(job_id).state == "FINISHING"
    assert {t.number for t in place.trials(job_id) if t.checkpoint_blob} == {0, 1, 2, 4, 6, 10, 11}
    with place.context.transaction() as session:
        job = session.get_one(JobRow, job_id)
        become(session, job, JobState.COMPLETE, best_trial_id=place.trials(job_id)[6].id)  # the best mean
    advance(place.context, job_id)
    assert {t.number for t in place.trials(job_id) if t.checkpoint_blob} == {0, 1, 2, 6}


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
