"""A job of 24 trials on both cores, start to end, against plain Optuna around the tutorial's loop.

The same photographs, splits, ImageNet weights, space and number of trials. Graft is its API and two workers, one thread
each, as a user has it: poor trials rest where they are compared. The rival is given the faster of one process with two
threads and two with one. What either takes depends on the recipes that it draws, so several seeds are run.
`job_in_full` is the same with every trial full fine-tuning to its end. What is selected by log-loss on val is judged by
accuracy on test, item by item. Photographs and weights: see `method_cases.DATA`.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import bounds
from benchmarks.method_cases import DATA
from benchmarks.processes import ROOT, api, running
from benchmarks.rivals.ours import bundle_on_test
from benchmarks.rivals.task import Task, right
from benchmarks.search_cases import SearchCase, folder_of
from benchmarks.search_maths import paired_span
from benchmarks.table import Figure, render
from domain.heads import n_frozen
from domain.recipe import Recipe
from graft import Client
from graft.answers import Trial
from graft.downloads import unzip
from intake.packs import open_pack

CASE = SearchCase("neu_surface", 50, 34, 216)
BACKBONE, WEIGHTS, RESOLUTION, BATCH = "mobilenet_v2", "mobilenet_v2_in1k", 64, 32
N_TRIALS, N_STAGES = 24, 5
RANGES: dict[str, Any] = {
    "lr": [1e-3, 1e-1], "ratio": [1e-2, 1.0], "decay": [1e-6, 1e-2], "decay_of_head": [1e-5, 1e-1], "steps": [40, 160],
}  # fmt: skip
ACCURACY_AIM = -1.0


class Kind(NamedTuple):
    name: str
    depth: tuple[int, int]  # stages that may be frozen
    pruner: str
    aim: float  # times as fast as the rival
    n_seeds: int


class Contest(NamedTuple):
    """One seed: seconds of both, the least that Graft's training steps can take, which answers on test are right."""

    ours_s: float
    least_s: float
    ours: str
    rival_s: float
    rival: str

    @property
    def faster(self) -> float:
        return self.rival_s / self.ours_s

    @property
    def differences(self) -> NDArray[np.float64]:  # points, item by item
        return np.array([100.0 * (int(a) - int(b)) for a, b in zip(self.ours, self.rival, strict=True)])


AS_IT_IS = Kind("as it is", (0, N_STAGES), "halving", aim=5.0, n_seeds=3)
IN_FULL = Kind("full fine-tuning, nothing stopped", (0, 0), "none", aim=1.6, n_seeds=1)


def measure(kind: Kind = AS_IT_IS) -> list[Figure]:
    if not (DATA / "weights" / f"{WEIGHTS}.safetensors").exists():
        raise SystemExit(f"no photographs and weights in {DATA}")
    contests: list[Contest] = []
    with tempfile.TemporaryDirectory() as name:
        folder = folder_of(CASE, 0, DATA, Path(name))
        short = RANGES | {"steps": [18, 18]}
        modes = {
            f"{p} x {t}": _tutorial(folder, short, (0, 0), p, t, n_trials=2, seed=0)[0] for p, t in ((1, 2), (2, 1))
        }
        figures = [Figure(f"two short trials of the tutorial's loop, {m}", s, "s") for m, s in modes.items()]
        mode = min(modes, key=lambda m: modes[m])
        processes, threads = (int(n) for n in mode.split(" x "))
        for seed in range(kind.n_seeds):
            folder = folder_of(CASE, seed, DATA, Path(name))
            ours = _graft(folder, kind, seed)
            rival = _tutorial(folder, RANGES, kind.depth, processes, threads, n_trials=N_TRIALS, seed=seed)
            contests.append(Contest(*ours, *rival))
            told = _of_one(f"{kind.name}, seed {seed}" if kind.n_seeds > 1 else kind.name, contests[-1], mode)
            print(render({"job": told}), file=sys.stderr, flush=True)  # half an hour is a long time to know nothing
            figures += told
    return figures + _of_all(kind, contests)


def _of_one(label: str, contest: Contest, mode: str) -> list[Figure]:
    return [
        Figure(f"{label}: Graft", contest.ours_s, "s", bound=contest.least_s),
        Figure(f"{label}: Optuna around the tutorial's loop, {mode}", contest.rival_s, "s"),
        Figure(f"{label}: Graft's test accuracy", 100 * contest.ours.count("1") / len(contest.ours), "%"),
        Figure(f"{label}: the rival's", 100 * contest.rival.count("1") / len(contest.rival), "%"),
    ]


def _of_all(kind: Kind, contests: Sequence[Contest]) -> list[Figure]:
    """The geometric mean of the ratios, and the mean difference over all items of all seeds."""
    mean, low, high = paired_span([contest.differences for contest in contests])
    columns = {"n_test": sum(len(contest.ours) for contest in contests), "high": high}
    ratios = [contest.faster for contest in contests]
    return [
        Figure(f"{kind.name}: times faster", math.prod(ratios) ** (1 / len(ratios)), "ratio", (">=", kind.aim),
               {"of_each": [round(ratio, 3) for ratio in ratios]}),
        Figure(f"{kind.name}: test accuracy above the rival's", mean, "points", None, columns),
        Figure(f"{kind.name}: of it the lower 95 % bound", low, "points", (">=", ACCURACY_AIM), columns),
    ]  # fmt: skip


def _task(folder: Path, out: Path, seed: int) -> Task:
    out.mkdir(parents=True, exist_ok=True)
    task = Task(
        folder=str(folder), out=str(out), weights=str(DATA / "weights" / f"{WEIGHTS}.safetensors"), backbone=BACKBONE,
        classes=open_pack(folder / "pack").classes, resolution=RESOLUTION, budget_s=0.0, seed=seed, began=time.time(),
    )  # fmt: skip
    task.write(out / "task.json")
    return task


def _tutorial(
    folder: Path, ranges: Mapping[str, Any], depth: tuple[int, int], processes: int, threads: int, *, n_trials: int,
    seed: int,
) -> tuple[float, str]:  # fmt: skip
    """Seconds from its start until its answer on test is known, and which answers are right."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        task = _task(folder, out, seed)
        space = {**ranges,
            "depth": list(depth), "trials": n_trials, "processes": processes, "threads": threads, "batch_size": BATCH
        }  # fmt: skip
        (out / "space.json").write_text(json.dumps(space), "utf-8")
        argv = [
            sys.executable,
            "-m",
            "benchmarks.rivals.tutorial_optuna",
            str(out / "task.json"),
            str(out / "space.json"),
        ]
        subprocess.run(argv, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
        found: dict[str, Any] = json.loads((Path(task.out) / "result.json").read_text("utf-8"))
    return float(found["searched_s"]), str(found["incumbents"][-1]["right"])


def _graft(folder: Path, kind: Kind, seed: int) -> tuple[float, float, str]:
    """Seconds from the start of its processes until the bundle is here, those of its training steps alone, had both
    cores done nothing else at their peak, and which of its answers on test are right."""
    (low, high), began = kind.depth, time.monotonic()
    space: dict[str, Any] = {
        "data.resolution": RESOLUTION, "data.batch_size": BATCH, "schedule": "freeze", "regularizer": "l2",
        "schedule.freeze.depth": {"low": low, "high": high} if high > low else low,
        **{place: {"low": RANGES[name][0], "high": RANGES[name][1]} for name, place in PLACES.items()},
        "data.mixup_alpha": 0.0, "optimizer.momentum": 0.9, "data.augmentation": 0.8, "data.flip": True,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        service = stack.enter_context(api(Path(name) / "home"))
        stack.enter_context(running(["worker"], service.env, service.home / "worker-0.log"))
        stack.enter_context(running(["worker", "--queue", "trials"], service.env, service.home / "worker-1.log"))
        client = stack.enter_context(Client(service.url, service.key))
        source = client.sources.register(str(DATA / "weights" / f"{WEIGHTS}.safetensors"), BACKBONE)
        dataset = client.datasets.wait(client.datasets.upload(folder / "pictures.zip").id)
        job = client.jobs.submit(
            dataset.id, sources=[source.ref], space=space, trials=N_TRIALS, anchors=False, n_folds=1, seed=seed,
            pruner=kind.pruner,
        )  # fmt: skip
        done = client.jobs.wait(job.id)
        if done.result is None:
            raise RuntimeError(f"the job ended {done.state}: {done.error}")
        client.jobs.download_bundle(job.id, Path(name) / "bundle.zip")
        took = time.monotonic() - began
        unzip(Path(name) / "bundle.zip", Path(name) / "bundle")
        task = _task(folder, Path(name) / "out", seed)
        operations = sum(_operations(client, trial) for trial in client.jobs.trials(job.id))
        answers = right(bundle_on_test(task, Path(name) / "bundle"), task.data("test")[1])
    return took, operations / bounds.peak_flops() / (os.cpu_count() or 1), answers


def _operations(client: Client, trial: Trial) -> float:
    """Of all the steps that a trial has taken."""
    recipe = Recipe.model_validate(trial.recipe)
    n_steps = max((report.step for report in client.trials.curve(trial.id)), default=0)
    frozen = n_frozen(recipe, N_STAGES)
    return n_steps * BATCH * bounds.of_training(BACKBONE, RESOLUTION, n_frozen=frozen)


PLACES = {
    "lr": "optimizer.lr_head", "ratio": "optimizer.inner_ratio", "decay": "regularizer.l2.alpha",
    "decay_of_head": "regularizer.l2.beta", "steps": "steps",
}  # fmt: skip
