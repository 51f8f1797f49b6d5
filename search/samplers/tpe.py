"""Tree-structured Parzen estimator over joint densities, with a constant liar for trials still running.

Bergstra et al. 2011; multivariate and grouped (one density per conditional branch) as in Optuna.
"""

import warnings

import optuna

N_STARTUP = 8  # random trials before the densities say anything; anchors count


def build(*, seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=N_STARTUP, multivariate=True, group=True, constant_liar=True, seed=seed
        )
