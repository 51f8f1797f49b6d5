"""Optuna around the tutorial's loop: `optuna_loop.py <task.json> random | tpe`."""

import sys

import optuna
from torch import Tensor

from benchmarks.rivals.loop import CHOICES, RANGES, Bench
from benchmarks.rivals.task import Incumbent, Task, leave, read_task

SAMPLERS = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}


def main(task: Task, sampler: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bench = Bench(task)
    best: list[tuple[float, dict[str, float], dict[str, Tensor]]] = []

    def objective(trial: optuna.Trial) -> float:
        config = {name: trial.suggest_categorical(name, options) for name, options in CHOICES.items()}
        for name, (low, high) in RANGES.items():
            suggest = trial.suggest_int if isinstance(low, int) else trial.suggest_float
            config[name] = suggest(name, low, high, log=True)  # type: ignore[arg-type]
        least = float("inf")
        for evaluation in bench.fit(config, task.seed * 1000 + trial.number):
            least = min(least, loss := evaluation.val["log_loss"])
            if not best or loss < best[-1][1]["log_loss"]:
                best.append((task.elapsed_s(), evaluation.val, evaluation.state()))
        if least == float("inf"):
            raise optuna.TrialPruned
        return least

    study = optuna.create_study(sampler=SAMPLERS[sampler](seed=task.seed))
    while task.left_s() > 0:
        study.optimize(objective, n_trials=1)
    searched_s = task.elapsed_s()
    found = [Incumbent(t, val, bench.on_test(state)) for t, val, state in best]
    leave(task, found, searched_s=searched_s, n_trials=len(study.trials))


if __name__ == "__main__":
    main(read_task(sys.argv[1]), sys.argv[2])
