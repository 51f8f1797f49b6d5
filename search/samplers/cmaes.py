"""CMA-ES over the numbers that every recipe has (Hansen 2016), from the centre of the space."""

import optuna

from search.asked import Asked
from search.evolution import cma_sampler

COUNTS_RESTING = True  # a trial that rests at a rung has ended for now: nothing waits for it


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    return cma_sampler(asked, sigma=1 / 3, popsize=None, from_defaults=False)  # a sixth of the axis, 4 + 3 ln d points
