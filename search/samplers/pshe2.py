"""P-SHE2: a swarm with momenta, particle by particle (see `search.pshe2`).

Trial n is particle n mod P, and keeps where that particle stood and with which momentum, so that any process rebuilds
the swarm from the rows, whatever order trials ended in. Options are equal bins of their axis. Axes of inactive
dimensions move with the rest and are not read. Recipes that others proposed count as the best of all where they are.
"""

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from search.asked import Asked
from search.cube import Array, Cube, PointSampler, regret, stopped_at
from search.pshe2 import N_PARTICLES, Swarm, draw

_NOTE = "pshe2"
COUNTS_RESTING = True  # a trial that rests at a rung has ended for now: nothing waits for it


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    cube = Cube(asked.space.dimensions)
    rng = np.random.default_rng(asked.seed)
    particle = asked.number % N_PARTICLES

    def propose(trials: list[FrozenTrial], larger_is_better: bool) -> tuple[Array, dict[str, object]]:
        if asked.again:  # a step ends near where it began: what was refused once would be refused again
            x, m = draw(cube.defaults, rng), np.zeros_like(cube.defaults)
        else:
            x, m = _swarm(cube, trials, larger_is_better).ask(particle, rng)
        return x, {_NOTE: {"particle": particle, "x": x.tolist(), "m": m.tolist()}}

    return PointSampler(cube, propose, seed=asked.seed)


def _swarm(cube: Cube, trials: list[FrozenTrial], larger_is_better: bool) -> Swarm:
    swarm = Swarm(cube.defaults)
    for trial in trials:
        if not trial.state.is_finished():
            continue
        r = None if trial.state == TrialState.FAIL else regret(trial, larger_is_better)
        note = trial.system_attrs.get(_NOTE)
        if note is not None:
            swarm.tell(note["particle"], note["x"], note["m"], r, stopped_at=stopped_at(trial, larger_is_better))
        elif r is not None and r <= swarm.best:
            swarm.tell_other(cube.encode(trial.params), r)
    return swarm
