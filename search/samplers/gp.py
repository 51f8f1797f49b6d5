"""A Gaussian process with log expected improvement over the dimensions that every recipe has; the rest is random.

Costs more than it brings beyond a hundred trials. Optuna's; imports torch when it is asked.
"""

import optuna

from search.asked import Asked

N_STARTUP = 8  # random trials before the process says anything; anchors count


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    if asked.again:  # the best of the process was refused, and would be proposed again
        return optuna.samplers.RandomSampler(seed=asked.seed)
    return optuna.samplers.GPSampler(seed=asked.seed, n_startup_trials=N_STARTUP, warn_independent_sampling=False)
