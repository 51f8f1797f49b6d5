"""Which dimensions mattered for coming out on top: PED-ANOVA over the COMPLETE trials of a study.

How much the best trials' values of a dimension are distributed otherwise than all trials' values of it (a Pearson
divergence of two density estimates), as a share of the sum over dimensions. All trials are those of this search, so
what the sampler preferred in any case is not taken for importance. A dimension that is not always active counts by how
often it was.

The best are at least N_BEST trials, below which the densities say nothing; below MIN_TRIALS nothing is said. fANOVA was
left out: its forest regresses the value over the whole space, the failures included, and needs more trials.
Watanabe, Bansal and Hutter, IJCAI 2023, arXiv:2304.10255; conditional dimensions: arXiv:2601.20800.
"""

import warnings

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

MIN_TRIALS = 20
N_BEST = 5
SHARE_BEST = 0.1


def importance(study: Study) -> dict[str, float]:
    """Dimension -> share of what was explained, the largest first; sums to 1, or empty where there is too little."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(trials) < MIN_TRIALS:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator  # with it comes scikit-learn, a second of every start

    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1

    def lower_is_better(trial: FrozenTrial) -> float:
        return float(sign * trial.values[0])

    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(SHARE_BEST, N_BEST / len(trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a target is minimised, which it is; that a choice was rarely made
        found = evaluator.evaluate(study, target=lower_is_better)
    total = sum(found.values())
    return {path: value / total for path, value in found.items() if value > 0} if total > 0 else {}
