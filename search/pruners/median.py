"""Stops a trial whose best value so far is worse than the median of earlier trials at the same share of budget."""

import optuna

from search.curves import GRID

N_STARTUP = 4  # finished trials before anything is stopped
WARMUP_SHARE = 0.2  # a warm-up and the first epochs say little


def build() -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(n_startup_trials=N_STARTUP, n_warmup_steps=int(WARMUP_SHARE * GRID))
