"""P-SHE2 as PaddleHub shipped it: one momentum for all particles, linear axes. For reproducing its results only.

Trial n is particle n mod P of round n // P. Rounds are meant to be run one after the other: a trial of an earlier
round that has not ended when the next begins counts as the worst, like one that failed.
"""

import math
from collections import defaultdict

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from search.asked import Asked
from search.cube import Array, Cube, PointSampler, regret
from search.pshe2 import N_PARTICLES, SharedSwarm, draw, perturb

_NOTE = "pshe2_paddlehub"


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    cube = Cube(asked.space.dimensions, linear=True)
    rng = np.random.default_rng(asked.seed)
    round_, particle = divmod(asked.number, N_PARTICLES)

    def propose(trials: list[FrozenTrial], larger_is_better: bool) -> tuple[Array, dict[str, object]]:
        earlier: defaultdict[int, dict[int, FrozenTrial]] = defaultdict(dict)
        for trial in trials:
            if _NOTE in trial.system_attrs and trial.number // N_PARTICLES < round_:
                earlier[trial.number // N_PARTICLES][trial.number % N_PARTICLES] = trial
        if earlier and not asked.again:
            places = _next_places(cube, [earlier[k] for k in sorted(earlier)], larger_is_better)
            x = perturb(places[particle], rng)
        else:
            x = draw(cube.defaults, rng)
        return x, {_NOTE: x.tolist()}

    return PointSampler(cube, propose, seed=asked.seed)


def _next_places(cube: Cube, rounds: list[dict[int, FrozenTrial]], larger_is_better: bool) -> list[Array]:
    """Where the particles stand after these rounds. One that was not tried in a round stays where it was."""
    swarm = SharedSwarm(cube.defaults)
    places = [cube.defaults] * N_PARTICLES
    for tried in rounds:
        for i, trial in tried.items():
            places[i] = np.asarray(trial.system_attrs[_NOTE])
        results = [regret(tried[i], larger_is_better) if i in tried else math.inf for i in range(N_PARTICLES)]
        places = swarm.tell(places, results)
    return places
