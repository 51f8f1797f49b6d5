"""An expert's fixed recipe through our `fit`, without a search: `fixed_recipe.py <task.json> bit_hyperrule | l2_sp`.

500 steps are what BiT-HyperRule says to fewer than 20,000 items, and what a job takes by default.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.method_cases import Case, Net
from benchmarks.method_run import Job, order_of
from benchmarks.rivals.ours import on_test
from benchmarks.rivals.task import Incumbent, Task, leave, read_task
from domain.recipe import Part
from transfer.fit import Fit

STEPS = 500
# The rule's rate is for 512 items a step, scaled to what there is; its published networks have no batch norm to hold.
RECIPES: dict[str, tuple[dict[str, Part], int]] = {
    "bit_hyperrule": ({"schedule": Part(name="bit_hyperrule")}, 64),
    "l2_sp": ({"schedule": Part(name="freeze"), "regularizer": Part(name="l2_sp")}, 32),
}


def main(task: Task, name: str) -> None:
    slots, batch_size = RECIPES[name]
    settings: dict[str, Any] = {
        "steps": STEPS, "batch_norm": "eval", "optimizer": {"lr_head": 1e-2, "inner_ratio": 0.1},
        "data": {"batch_size": batch_size, "resolution": task.resolution},
    }  # fmt: skip
    nets = {"main": Net(task.backbone, task.weights)}
    case = Case(Path(task.folder).name, False, f"{task.folder}/pack", nets, settings)
    recipe = case.recipe("main", slots, seed=task.seed)
    fit = Fit(order_of(Job(case, name, "main", recipe), task.out), stopped=lambda _: "go")
    for _ in fit:
        pass
    searched_s, outcome = task.elapsed_s(), fit.outcome("tr_0")
    if outcome.state != "COMPLETE":
        raise RuntimeError(f"{outcome.state}: {outcome.error}")
    val = {metric: outcome.metrics[metric] for metric in ("accuracy", "log_loss")}
    test = on_test(task, recipe, Path(outcome.files["weights"]))
    leave(task, [Incumbent(searched_s, val, test)], searched_s=searched_s)


if __name__ == "__main__":
    main(read_task(sys.argv[1]), sys.argv[2])
