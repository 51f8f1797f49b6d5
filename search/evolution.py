"""CMA-ES as a sampler: its state is told again from the trials, generation by generation."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np
import optuna
from cmaes import CMA
from optuna.trial import FrozenTrial, TrialState

from search.asked import Asked
from search.cube import Array, Cube, PointSampler, always_active, regret, stopped_at

_NOTE = "generation"


@dataclass(slots=True)
class _Told:
    """The strategy after the generations told so far, each the numbers of its trials, the best first."""

    cma: CMA
    generations: list[tuple[int, ...]] = field(default_factory=list)


def cma_sampler(
    asked: Asked, *, sigma: float, popsize: int | None, from_defaults: bool
) -> optuna.samplers.BaseSampler:  # fmt: skip
    """CMA-ES (Hansen 2016) in the cube of the numbers that every recipe has; options and the rest are drawn uniformly.

    A generation is told when `popsize` of its trials have ended, the first by number. Only ranks matter to CMA-ES:
    trials that were stopped rank behind all others, the longest-lived first, of equals the one that showed more. One
    that rests at a rung counts as stopped there; where it goes on and ends, its generation is told anew. Trials that
    others proposed belong to no generation. It starts at the defaults or at the centre, and after it has converged at
    a random place.
    """
    numbers = [d for d in always_active(asked.space) if d.range.kind != "choice"]
    cube = Cube(numbers)
    bounds = np.tile([-1.0, 1.0], (len(numbers), 1))

    def begin(mean: Array) -> CMA:
        return CMA(mean=mean, sigma=sigma, bounds=bounds, population_size=popsize, n_max_resampling=10 * len(numbers))

    def propose(trials: list[FrozenTrial], larger_is_better: bool) -> tuple[Array, dict[str, object]]:
        ended: defaultdict[int, list[FrozenTrial]] = defaultdict(list)
        for trial in trials:
            if _NOTE in trial.system_attrs and trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                ended[trial.system_attrs[_NOTE]].append(trial)
        told: _Told | None = asked.kept.get("told")
        size = begin(cube.defaults).population_size if told is None else told.cma.population_size
        whole = takewhile(lambda of: len(of) == size, (ended[g][:size] for g in range(len(ended))))
        full = [_ranked(generation, larger_is_better) for generation in whole]
        seen = [tuple(t.number for t in of) for of in full]
        if told is None or told.generations != seen[: len(told.generations)]:
            told = _Told(begin(cube.defaults if from_defaults else np.zeros(len(numbers))))
        for generation in full[len(told.generations) :]:
            told.cma.tell([(cube.encode(t.params), float(rank)) for rank, t in enumerate(generation)])
            told.generations.append(tuple(t.number for t in generation))
            if told.cma.should_stop():
                rng = np.random.default_rng([asked.study_seed, len(told.generations)])
                told.cma = begin(rng.uniform(-1, 1, len(numbers)))
        asked.kept["told"] = told
        told.cma.reseed_rng(asked.seed)
        return told.cma.ask(), {_NOTE: len(told.generations)}

    return PointSampler(cube, propose, seed=asked.seed)


def _ranked(trials: list[FrozenTrial], larger_is_better: bool) -> list[FrozenTrial]:
    """The best first."""
    return sorted(trials, key=lambda t: (regret(t, larger_is_better), stopped_at(t, larger_is_better)))
