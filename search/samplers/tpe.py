"""Tree-structured Parzen estimator over joint densities, with a constant liar for trials still running.

Bergstra et al. 2011; multivariate and grouped (one density per conditional branch) as in Optuna.

The time of an ask grows with the trials in the densities. It sees the best 50 and the latest 150: the better density
is built from the best tenth, 25 at most, and the other one weighs old trials less anyway.
"""

import warnings

import optuna

from search.asked import Asked
from search.history import Most

MOST = Most(best=50, latest=150)
N_STARTUP = 8  # random trials before the densities say anything; anchors count


def build(asked: Asked) -> optuna.samplers.BaseSampler:
    if asked.again >= N_STARTUP:  # the densities insist on what is refused
        return optuna.samplers.RandomSampler(seed=asked.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=N_STARTUP, multivariate=True, group=True, constant_liar=True, seed=asked.seed
        )
