"""What does asking ahead cost a search?

TPE on formulas and on replayed fine-tuning, asked for one recipe at a time, for one ahead of the trial that runs, and
for sixteen at once as heads that are trained together are. Regret after a number of trials: 0 is the best loss known, 1
the median random recipe; each way is set against the first, seed by seed.
"""

import warnings

from benchmarks.objectives import FORMULAS, Objective, objectives_of, replays
from benchmarks.search_maths import incumbents, loss_at, normalised, span
from benchmarks.table import Figure
from domain.heads import AT_ONCE
from domain.states import TrialState
from search.study import Past, Search

BUDGETS = (25, 50)
N_SEEDS = 10
AT_A_TIME, AHEAD, TOGETHER = "one at a time", "one ahead", f"{AT_ONCE} at once"


def measure() -> list[Figure]:
    names = [*FORMULAS, *(name for name, found in replays().items() if found.stands)]
    regrets: dict[tuple[str, int], list[float]] = {}
    for name in names:
        for seed in range(N_SEEDS):
            objective = objectives_of(name, seed)
            for way in (AT_A_TIME, AHEAD, TOGETHER):
                found = _search(objective, way, seed)
                for budget in BUDGETS:
                    loss = loss_at(found, budget, objective.usual)
                    regrets.setdefault((way, budget), []).append(normalised(loss, objective.best, objective.usual))
    figures = []
    for budget in BUDGETS:
        for way in (AT_A_TIME, AHEAD, TOGETHER):
            mine, base = regrets[way, budget], regrets[AT_A_TIME, budget]
            figures.append(Figure(f"TPE, {way}: regret after {budget} trials", span(mine).mean, "regret"))
            if way != AT_A_TIME:
                cost = span([a - b for a, b in zip(mine, base, strict=True)])
                columns = {"low": cost.low, "high": cost.high, "n": len(mine)}
                figures.append(Figure(f"TPE, {way}: what it costs", cost.mean, "regret", None, columns))
    return figures


def _search(objective: Objective, way: str, seed: int) -> list[tuple[float, float]]:
    search = Search(objective.space, direction="minimize", sampler="tpe", pruner="none", seed=seed)
    asked: list[Past] = []
    told: list[tuple[float, float]] = []
    number = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(told) < max(BUDGETS):
            wanted = {AT_A_TIME: 1, AHEAD: 2, TOGETHER: 0 if asked else AT_ONCE}[way]
            while len(asked) < wanted:
                proposal = search.ask(number)
                asked.append(Past(number, TrialState.RUNNING, proposal.values, attrs=proposal.attrs))
                number += 1
            trial = asked.pop(0)
            value = objective.answer(trial.values)[-1][1]
            search.learn([Past(trial.number, TrialState.COMPLETE, trial.values, value=value, attrs=trial.attrs)])
            told.append((len(told) + 1, value))
    return incumbents(told)
