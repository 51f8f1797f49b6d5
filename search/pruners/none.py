"""Every trial runs to its end."""

import optuna


def build() -> optuna.pruners.BasePruner:
    return optuna.pruners.NopPruner()
