"""HAZero: CMA-ES with PaddleHub's settings. It starts at the defaults, with a small step and a small population."""

import optuna

from search.asked import Asked
from search.evolution import cma_sampler

POPSIZE = 5  # the published command's default
COUNTS_RESTING = True  # a trial that rests at a rung has ended for now: nothing waits for it


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    return cma_sampler(asked, sigma=0.2, popsize=POPSIZE, from_defaults=True)
