"""Asynchronous successive halving on the share of a trial's budget (Li et al. 2020, ASHA).

Rungs stand at shares 1/9 and 1/3 (reduction factor eta = 3). A trial that reaches a rung goes on if its value there is
among the best 1/eta of all trials that have reached it. Computed from the curves alone, so that any process that has
read the history decides alike; Optuna's own pruner keeps its rungs in attributes of the process that ran the trial.
"""

import math

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from search.curves import GRID

ETA = 3
RUNGS = tuple(math.ceil(GRID / ETA**k) for k in (2, 1))  # as steps of the grid


class Halving(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        rung = max((r for r in RUNGS if step is not None and r <= step), default=None)
        if rung is None or rung not in trial.intermediate_values:
            return False
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        mine = sign * trial.intermediate_values[rung]
        others = [
            sign * t.intermediate_values[rung]
            for t in study.get_trials(deepcopy=False)
            if rung in t.intermediate_values and t.number != trial.number
        ]
        # Fewer than eta trials at a rung cannot be divided by eta: let them pass.
        if len(others) + 1 < ETA:
            return False
        allowed = max(1, (len(others) + 1) // ETA)
        return sum(other < mine for other in others) >= allowed


def build() -> optuna.pruners.BasePruner:
    return Halving()
