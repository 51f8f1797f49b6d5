"""Sobol's sequence, scrambled by the study's seed (Owen 1998): trial n is its n-th point.

Optuna's own sampler counts its points in the storage and leaves conditional dimensions out; here every dimension has an
axis, and the number of the trial says which point is meant.
"""

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from search.asked import Asked
from search.cube import Array, Cube, PointSampler


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    cube = Cube(asked.space.dimensions)

    def propose(trials: list[FrozenTrial], larger_is_better: bool) -> tuple[Array, dict[str, object]]:  # noqa: ARG001
        if asked.again:  # the point was refused: any other in its place
            return np.random.default_rng(asked.seed).uniform(-1, 1, len(cube.axes)), {}
        sequence = qmc.Sobol(len(cube.axes), scramble=True, rng=np.random.default_rng(asked.study_seed))
        if asked.number:  # it cannot be moved by nothing
            sequence.fast_forward(asked.number)
        return 2 * sequence.random(1)[0] - 1, {}

    return PointSampler(cube, propose, seed=asked.seed)
