"""Independent uniform draws (uniform in the logarithm where a range says so)."""

import optuna


def build(*, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)
