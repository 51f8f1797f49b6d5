"""Ray Tune with asynchronous successive halving around the tutorial's loop: `ray_asha.py <task.json>`."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Where cores are busy its node takes long to start; a trial that the budget ends before it has reported is no error.
os.environ |= {"RAY_raylet_start_wait_time_s": "120", "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1"}

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from safetensors.torch import load_file, save_file

from benchmarks.rivals.loop import CHOICES, N_EVALUATIONS, RANGES, Bench
from benchmarks.rivals.task import Incumbent, Task, leave, read_task


def trainable(config: dict[str, Any], task: Task) -> None:
    for evaluation in Bench(task).fit(config, config["seed"]):
        with tempfile.TemporaryDirectory() as folder:
            save_file(evaluation.state(), Path(folder) / "weights.safetensors")
            told = evaluation.val | {"t": task.elapsed_s()}
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))


def main(task: Task) -> None:
    space: dict[str, Any] = {name: tune.choice(options) for name, options in CHOICES.items()}
    for name, (low, high) in RANGES.items():
        space[name] = (tune.lograndint if isinstance(low, int) else tune.loguniform)(low, high)
    space["seed"] = tune.randint(0, 2**31 - 1)
    with tempfile.TemporaryDirectory(prefix="ray-") as home:  # a short path: Ray's sockets lie in it
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=f"{home}/r")
        results = tune.Tuner(
            tune.with_parameters(trainable, task=task),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="log_loss", mode="min", num_samples=-1, max_concurrent_trials=1, time_budget_s=task.left_s(),
                scheduler=ASHAScheduler(max_t=N_EVALUATIONS, grace_period=1, reduction_factor=3),
                search_alg=tune.search.BasicVariantGenerator(random_state=task.seed),
            ),
            run_config=tune.RunConfig(storage_path=f"{home}/results", verbose=0),
        ).fit()  # fmt: skip
        searched_s = task.elapsed_s()
        told = [(m["t"], m, checkpoint) for result in results for checkpoint, m in result.best_checkpoints or ()]
        bench, found, least = Bench(task), list[Incumbent](), float("inf")
        for t, metrics, checkpoint in sorted(told, key=lambda one: one[0]):
            if metrics["log_loss"] < least:
                least = metrics["log_loss"]
                state = load_file(Path(checkpoint.path) / "weights.safetensors")
                val = {name: metrics[name] for name in ("accuracy", "log_loss")}
                found.append(Incumbent(t, val, bench.on_test(state)))
        leave(task, found, searched_s=searched_s, n_trials=len(results))
        ray.shutdown()


if __name__ == "__main__":
    main(read_task(sys.argv[1]))
