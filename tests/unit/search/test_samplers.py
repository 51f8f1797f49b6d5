"""What every registered sampler promises, on the space of a default job and on a small conditional one."""

import itertools
import json
import math
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial

from api.schemas.job import JobCreate
from api.submit import default_spec
from domain.catalogue import catalogue
from domain.errors import Invalid
from domain.sampler import ONE_OBJECTIVE, choose
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Space, Value
from domain.states import TrialState
from search.cube import Cube
from search.registry import names
from search.study import Past, Search

SAMPLERS = names("samplers")
SEVERAL = [name for name in SAMPLERS if name not in ONE_OBJECTIVE]
TOY = Space(
    dimensions=(
        Dimension(path="lr", range=FloatRange(low=1e-4, high=1.0, log=True, default=1e-2)),
        Dimension(path="mix", range=FloatRange(low=0.0, high=1.0, default=0.5)),
        Dimension(path="depth", range=IntRange(low=0, high=4, default=0)),
        Dimension(path="steps", range=IntRange(low=10, high=1000, log=True, default=100)),
        Dimension(path="method", range=Choice(options=("l2", "l2_sp", "none"), default="l2")),
        Dimension(
            path="alpha", range=FloatRange(low=1e-4, high=1.0, log=True, default=0.1),
            when=(Condition(path="method", values=("l2_sp",)),),
        ),
        Dimension(path="only", range=Choice(options=(True,), default=True),
                  when=(Condition(path="method", values=("l2",)),)),
    ),
    fixed={"flip": False},
)  # fmt: skip
JOB = default_spec(catalogue()).space
SPACES = {"toy": TOY, "job": JOB}


def new_search(sampler: str, space: Space = TOY, *, seed: int = 7, n_objectives: int = 1) -> Search:
    others = {f"other{n}": "minimize" for n in range(n_objectives - 1)}
    return Search(space, direction="maximize", others=others, sampler=sampler, pruner="none", seed=seed)


def worth(space: Space, values: dict[str, Value]) -> float:
    """Best at the middle of every number, and with the first option of every choice."""
    cube = Cube(d for d in space.dimensions if d.path in values and d.active(values))
    point = cube.encode(values)
    return -float(np.mean([abs(point[a]) for a in cube.axes.values()])) if cube.axes else 0.0


def ended(past: Past, space: Space, n_objectives: int = 1) -> Past:
    """The trial as it ends: every seventh fails, every fifth is stopped, the others are complete."""
    value = worth(space, dict(past.values))
    if past.number % 7 == 6:
        return replace(past, state=TrialState.FAILED)
    if past.number % 5 == 4:
        return replace(past, state=TrialState.PRUNED, curve=((0.2, value - 0.2), (0.4, value - 0.1)))
    others = tuple(float(past.number % 3) for _ in range(n_objectives - 1))
    return replace(past, state=TrialState.COMPLETE, value=value, others=others)


def stored(past: Past) -> Past:
    """As it comes back from the database."""
    return replace(
        past, values=json.loads(json.dumps(dict(past.values))), attrs=json.loads(json.dumps(dict(past.attrs)))
    )


def ask(search: Search, number: int) -> Past:
    proposal = search.ask(number)
    return Past(number, TrialState.RUNNING, proposal.values, attrs=proposal.attrs)


def run(search: Search, n: int, *, parallel: int = 1, n_objectives: int = 1) -> list[Past]:
    """`n` trials, `parallel` at a time, of which the youngest ends first: what has been learned, by number."""
    known: dict[int, Past] = {}
    running: list[Past] = []
    for number in range(n):
        known[number] = ask(search, number)
        running.append(known[number])
        if len(running) >= parallel:
            done = ended(running.pop(), search.space, n_objectives)
            known[done.number] = done
            search.learn([stored(done)])
    return [known[number] for number in range(n)]


def length(sampler: str, n: int) -> int:
    """A Gaussian process takes its time: as many trials as it needs to say anything."""
    return min(n, 16) if sampler == "gp" else n


def check(space: Space, values: dict[str, Value]) -> None:
    expected = set(space.fixed) | {d.path for d in space.dimensions if d.active(values)}
    assert set(values) == expected
    assert {path: values[path] for path in space.fixed} == space.fixed
    for dimension in space.dimensions:
        if dimension.path in values:
            assert dimension.range.holds(values[dimension.path]), (dimension.path, values[dimension.path])


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_proposal_is_a_recipe_of_the_space(sampler: str, space: str) -> None:
    search = new_search(sampler, SPACES[space])
    for past in run(search, length(sampler, 60), parallel=3):
        check(SPACES[space], dict(past.values))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_proposes_the_same_and_another_seed_something_else(sampler: str) -> None:
    def proposed(seed: int) -> list[Any]:
        return [dict(p.values) for p in run(new_search(sampler, seed=seed), length(sampler, 30))]

    assert proposed(1) == proposed(1)
    assert proposed(1) != proposed(2)


@pytest.mark.parametrize("n_objectives", [1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_process_that_knows_the_rows_proposes_what_the_first_one_does(sampler: str, n_objectives: int) -> None:
    """Trials that run, rest, fail and were stopped included, and at every moment of the search."""
    if n_objectives > 1 and sampler in ONE_OBJECTIVE:
        pytest.skip("refused: see below")
    first = new_search(sampler, n_objectives=n_objectives)
    n = length(sampler, 50)
    history = run(first, n, parallel=4, n_objectives=n_objectives)
    assert history[0].state == TrialState.RUNNING
    history[0] = replace(history[0], state=TrialState.PAUSED)
    first.learn(history[:1])
    for number in range(n, n + (1 if sampler == "gp" else 3)):
        rebuilt = new_search(sampler, n_objectives=n_objectives)
        rebuilt.learn(stored(past) for past in history)
        here, there = ask(first, number), ask(rebuilt, number)
        assert (here.values, here.attrs) == (there.values, there.attrs)
        history.append(here)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_proposal_taken_back_leaves_no_trace(sampler: str) -> None:
    disturbed, other = new_search(sampler), new_search(sampler)
    run(disturbed, 10)
    run(other, 10)
    disturbed.ask(10)
    disturbed.forget(10)
    disturbed.ask(10, again=1)
    disturbed.forget(10)
    assert disturbed.ask(10) == other.ask(10)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_refused_proposal_is_followed_by_another_one(sampler: str) -> None:
    search = new_search(sampler)
    run(search, 10)
    proposed = []
    for again in range(20):
        proposed.append(search.ask(10, again=again).values)
        search.forget(10)
    assert len({json.dumps(values) for values in proposed}) > 10
    assert len({values["method"] for values in proposed}) > 1, "an option that is illegal is left at some time"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_recipes_that_others_proposed_are_learned(sampler: str) -> None:
    """Warm starts and repeats have no notes of the sampler; one of them is far better than all else."""
    search = new_search(sampler)
    history = run(search, 10)
    good = {"flip": False, "lr": 1e-2, "mix": 0.5, "depth": 2, "steps": 100, "method": "none"}
    warm = Past(10, TrialState.COMPLETE, good, 10.0, attrs={"origin": "warm_start", "why": "it was good"})
    search.learn([warm, replace(warm, number=11, value=9.9, attrs={"origin": "repeat", "of": 10})])
    assert {10, 11} <= search.finished
    check(TOY, search.ask(12).values)
    assert len(history) == 10


def test_a_cheap_try_is_learned_as_one_that_did_not_come_to_its_end() -> None:
    """A better value at a lower fidelity draws the swarm nowhere: it is not the best of all."""
    plain, cheap = new_search("pshe2"), new_search("pshe2")
    history = run(plain, 10)
    cheap.learn(history)
    values = history[0].values
    cheap.learn([Past(10, TrialState.COMPLETE, values, 99.0, curve=((0.3, 99.0),), comparable=False)])
    assert cheap.ask(12).values == plain.ask(12).values
    full = new_search("pshe2")
    full.learn([*history, Past(10, TrialState.COMPLETE, values, 99.0)])
    assert full.ask(12).values != plain.ask(12).values


@pytest.mark.parametrize("sampler", ONE_OBJECTIVE)
def test_a_sampler_of_one_objective_refuses_two(sampler: str) -> None:
    with pytest.raises(Invalid) as refused:
        new_search(sampler, n_objectives=2)
    assert refused.value.code == "sampler_one_objective"


@pytest.mark.parametrize("sampler", ["cmaes", "hazero"])
def test_a_covariance_needs_numbers(sampler: str) -> None:
    choices = TOY.model_copy(update={"dimensions": TOY.dimensions[4:5]})
    with pytest.raises(Invalid) as refused:
        new_search(sampler, choices)
    assert refused.value.code == "sampler_without_numbers"


@pytest.mark.parametrize("sampler", SEVERAL)
def test_a_second_objective_without_a_value_never_ranks(sampler: str) -> None:
    search = new_search(sampler, n_objectives=2)
    history = run(search, 10, n_objectives=2)
    search.learn([Past(10, TrialState.COMPLETE, history[0].values, 1.0)])
    search.learn([Past(11, TrialState.COMPLETE, history[0].values, 1.0, others=(float("nan"),))])
    check(TOY, search.ask(12).values)


def test_several_objectives_stop_nothing() -> None:
    search = Search(TOY, direction="minimize", others={"b": "minimize"}, sampler="random", pruner="median", seed=0)
    values = TOY.defaults()
    curve = tuple((s / 10, 0.0) for s in range(1, 11))
    search.learn(Past(n, TrialState.COMPLETE, values, 0.0, curve, (0.0,)) for n in range(6))
    search.learn([Past(9, TrialState.RUNNING, values)])
    assert not search.should_prune(9, [(0.5, 100.0)])


def test_nsga2_finds_the_front_that_random_draws_do_not() -> None:
    """Two losses that pull `mix` to either end, and both `lr` to 1e-2."""

    def losses(values: dict[str, Value]) -> tuple[float, float]:
        off = abs(math.log10(float(values["lr"])) + 2)
        return off + float(values["mix"]), off + 1 - float(values["mix"])

    def distance(sampler: str) -> float:
        search = Search(TOY, direction="minimize", others={"b": "minimize"}, sampler=sampler, pruner="none", seed=1)
        found = []
        for number in range(200):
            proposal = search.ask(number)
            a, b = losses(proposal.values)
            search.learn([Past(number, TrialState.COMPLETE, proposal.values, a, (), (b,), proposal.attrs)])
            found.append(a + b - 1)  # 0 on the front
        return float(np.mean(found[-50:]))

    assert distance("nsga2") < distance("random") / 2


def test_qmc_fills_the_space_more_evenly_than_chance() -> None:
    """Each of 64 equal slices of an axis holds one of 64 points; chance leaves a third of them empty."""
    search = new_search("qmc")
    mixes = [float(search.ask(number).values["mix"]) for number in range(64)]
    assert len({int(mix * 64) for mix in mixes}) == 64


@pytest.mark.parametrize("sampler", ["cmaes", "hazero", "pshe2", "tpe"])
def test_samplers_that_learn_come_nearer_to_the_optimum(sampler: str) -> None:
    search = new_search(sampler, Space(dimensions=TOY.dimensions[:4]))
    cube, found = Cube(TOY.dimensions[:4]), []
    for number in range(80):
        proposal = search.ask(number)
        found.append(-float(np.mean(np.abs(cube.encode(proposal.values) - 0.8))))  # the best is off the centre
        search.learn([Past(number, TrialState.COMPLETE, proposal.values, found[-1], attrs=proposal.attrs)])
    assert np.median(found[-30:]) > np.median(found[:30])


def test_a_cma_generation_is_told_when_its_trials_have_ended_whoever_else_proposed_something() -> None:
    search = new_search("hazero")
    generations = [past.attrs["sampler"]["generation"] for past in run(search, 20)]
    assert generations == sorted(generations)
    assert generations[0] == 0
    assert generations[-1] >= 2


def told(sampler: str, end: Callable[[Past, float], Past], n: int = 20) -> tuple[Search, list[Past]]:
    """A search under halving whose trials end as `end` says, given what they are worth."""
    search = Search(TOY, direction="maximize", sampler=sampler, pruner="halving", seed=7)
    history = []
    for number in range(n):
        past = ask(search, number)
        history.append(end(past, worth(TOY, dict(past.values))))
        search.learn(history[-1:])
    return search, history


def cheap(past: Past, value: float) -> Past:
    return replace(past, state=TrialState.PRUNED, curve=((1 / 3, value),))


def resting(past: Past, value: float) -> Past:
    """It went a little beyond its rung before it stopped, one more and another less."""
    late = (0.35 + past.number / 100, value)
    return replace(past, state=TrialState.PAUSED, rung=20 / 60, curve=((1 / 3, value), late))


@pytest.mark.parametrize("end", [cheap, resting])
@pytest.mark.parametrize("sampler", ["cmaes", "hazero"])
def test_stopped_at_the_same_share_trials_lead_where_their_values_would(
    sampler: str, end: Callable[[Past, float], Past]
) -> None:
    """To a method that looks at ranks, as many trials that ran to their end with these values say the same."""
    stopped, _ = told(sampler, end)
    full, history = told(sampler, lambda p, v: replace(p, state=TrialState.COMPLETE, value=v))
    assert stopped.ask(20) == full.ask(20)
    assert history[-1].attrs["sampler"]["generation"] > 0
    upside_down, _ = told(sampler, lambda p, v: end(p, -v))
    assert upside_down.ask(20) != full.ask(20)


@pytest.mark.parametrize("sampler", ["cmaes", "hazero", "pshe2"])
def test_what_rests_is_learned_and_goes_on_as_any_process_would_have_it(sampler: str) -> None:
    """One is promoted, runs beyond its rung and ends: at every moment a rebuilt search proposes the same."""
    search, history = told(sampler, resting)
    pruned, _ = told(sampler, cheap)
    assert search.ask(20).values == pruned.ask(20).values
    number = search.promotable()[0]
    assert history[number].curve[0][1] == max(past.curve[0][1] for past in history)
    running = replace(history[number], state=TrialState.RUNNING, rung=None, passed=20 / 60)
    before = search.ask(20)
    for now in (running, replace(running, state=TrialState.COMPLETE, value=-9.0)):
        history[number] = now
        search.learn([now])
        rebuilt = Search(TOY, direction="maximize", sampler=sampler, pruner="halving", seed=7)
        rebuilt.learn(stored(past) for past in history)
        proposed = rebuilt.ask(20)
        assert search.ask(20) == proposed
        # What it showed at its rung counts until it has a value; to ranks, who led at the rung leads by having ended.
        assert (proposed == before) == (now is running or sampler != "pshe2")


def test_pshe2_moves_each_particle_from_where_it_stood() -> None:
    """With P particles, trials n and n + P are one particle: it moves, and noise is bounded by epsilon."""
    search = new_search("pshe2")
    notes = [past.attrs["sampler"]["pshe2"] for past in run(search, 10)]
    assert [note["particle"] for note in notes] == [n % 5 for n in range(10)]
    assert all(np.allclose(note["m"], 0) for note in notes[:5])
    assert not np.allclose(notes[5]["x"], notes[0]["x"])


def test_a_long_history_is_shown_by_its_best_and_its_latest_trials_and_only_to_a_sampler() -> None:
    """The densities that look best do not change with trials that are neither."""
    search, values = new_search("tpe"), dict(TOY.defaults())
    search.learn(Past(n, TrialState.COMPLETE, values, float(-abs(n - 300))) for n in range(1000))
    search.learn([Past(1000, TrialState.RUNNING, values)])
    study = search._study
    assert len(study.get_trials(deepcopy=False)) == 1001
    seen: list[int] = []

    class Looking(optuna.samplers.RandomSampler):
        def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
            seen.extend(t.number for t in study.get_trials(deepcopy=False))

    search._sampler = types.SimpleNamespace(build=lambda asked: Looking(seed=asked.seed))
    search.ask(1001)
    assert seen == [*range(275, 325), *range(850, 1002)]


@pytest.mark.parametrize("linear", [False, True])
def test_points_and_values_are_two_ways_to_say_the_same(linear: bool) -> None:
    cube = Cube(TOY.dimensions, linear=linear)
    values = {"lr": 0.05, "mix": 0.25, "depth": 3, "steps": 31, "method": "none", "alpha": 0.02, "only": True}
    point = cube.encode(values)
    assert {path: cube.decode(path, point) for path in values} == pytest.approx(values)
    assert cube.decode("mix", np.full(7, 9.0)) == 1.0
    assert cube.decode("mix", np.full(7, -9.0)) == 0.0
    assert cube.encode({}) == pytest.approx(cube.defaults)


def test_bins_of_whole_numbers_and_options_are_equally_wide() -> None:
    cube = Cube(TOY.dimensions)
    grid = np.linspace(-1, 1, 30_001)
    for path, n in (("depth", 5), ("method", 3)):
        seen = [cube.decode(path, np.full(7, u)) for u in grid]
        shares = [len(list(group)) / grid.size for _, group in itertools.groupby(seen)]
        assert shares == pytest.approx([1 / n] * n, abs=1e-3)


def test_the_middle_of_a_logarithmic_axis_is_the_geometric_mean() -> None:
    assert Cube(TOY.dimensions).decode("lr", np.zeros(7)) == pytest.approx(1e-2)
    assert Cube(TOY.dimensions, linear=True).decode("lr", np.zeros(7)) == pytest.approx(0.50005)


def test_the_request_names_every_sampler_there_is() -> None:
    assert set(get_args(JobCreate.model_fields["sampler"].annotation)) == {"auto", *SAMPLERS}


def test_auto_chooses_what_is_registered_and_never_gp_beyond_a_hundred_trials() -> None:
    spaces: Sequence[Space] = [JOB, TOY, Space(dimensions=TOY.dimensions[:4]), Space(dimensions=TOY.dimensions[:1])]
    budgets: Iterable[int | None] = [None, 1, 5, 9, 30, 100, 101, 499, 500, 10_000]
    for space, n_trials, n_objectives in itertools.product(spaces, budgets, (1, 2, 3)):
        name, why = choose(space, n_trials=n_trials, n_objectives=n_objectives)
        assert name in SAMPLERS
        assert why
        assert name != "gp" or (n_trials is not None and n_trials <= 100)
        new_search(name, space, n_objectives=n_objectives)
