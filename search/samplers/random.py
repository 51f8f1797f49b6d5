"""Independent uniform draws (uniform in the logarithm where a range says so)."""

import optuna

from search.asked import Asked


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=asked.seed)
