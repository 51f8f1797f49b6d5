"""A job of 24 trials on both cores, start to end, against plain Optuna around the tutorial's loop.

The same photographs, splits, ImageNet weights, space and number of trials. Graft is its API and two workers, one thread
each, as a user has it: poor trials rest where they are compared. The rival is given the faster of one process with two
threads and two with one. Then the same with every trial full fine-tuning to its end. What is selected by log-loss on
val is judged by accuracy on test, item by item. Photographs and weights: see `method_cases.DATA`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

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
RANGES: dict[str, Any] = {"lr": [1e-3, 1e-1], "ratio": [1e-2, 1.0], "decay": [1e-5, 1e-1], "steps": [40, 160]}
KINDS = {"as it is": ([0, N_STAGES], 5.0), "full fine-tuning, nothing stopped": ([0, 0], 1.6)}
ACCURACY_AIM = -1.0


def measure() -> list[Figure]:
    if not (DATA / "weights" / f"{WEIGHTS}.safetensors").exists():
        raise SystemExit(f"no photographs and weights in {DATA}")
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = folder_of(CASE, 0, DATA, Path(name))
        short = RANGES | {"steps": [18, 18]}
        modes = {f"{p} x {t}": _tutorial(folder, short, [0, 0], p, t, n_trials=2)[0] for p, t in ((1, 2), (2, 1))}
        figures += [Figure(f"two short trials of the tutorial's loop, {m}", s, "s") for m, s in modes.items()]
        processes, threads = (int(n) for n in min(modes, key=lambda m: modes[m]).split(" x "))
        for kind, (depth, aim) in KINDS.items():
            ours_s, ours, least_s = _graft(folder, depth, plain=kind != "as it is")
            rival_s, rival = _tutorial(folder, RANGES, depth, processes, threads, n_trials=N_TRIALS)
            found = _figures(kind, aim, ours_s, ours, least_s, rival_s, rival, f"{processes} x {threads}")
            print(render({"job": found}), file=sys.stderr, flush=True)  # half an hour is a long time to know nothing
            figures += found
    return figures


def _figures(
    kind: str, aim: float, ours_s: float, ours: str, least_s: float, rival_s: float, rival: str, mode: str
) -> list[Figure]:  # fmt: skip
    differences = np.array([100.0 * (int(a) - int(b)) for a, b in zip(ours, rival, strict=True)])
    mean, low, high = paired_span([differences])
    columns = {"n_test": len(ours), "high": high}
    return [
        Figure(f"{kind}: Graft", ours_s, "s", bound=least_s),
        Figure(f"{kind}: Optuna around the tutorial's loop, {mode}", rival_s, "s"),
        Figure(f"{kind}: times faster", rival_s / ours_s, "ratio", (">=", aim)),
        Figure(f"{kind}: Graft's test accuracy", 100 * ours.count("1") / len(ours), "%"),
        Figure(f"{kind}: test accuracy above the rival's", mean, "points", None, columns),
        Figure(f"{kind}: of it the lower 95 % bound", low, "points", (">=", ACCURACY_AIM), columns),
    ]


def _task(folder: Path, out: Path) -> Task:
    out.mkdir(parents=True, exist_ok=True)
    task = Task(
        folder=str(folder), out=str(out), weights=str(DATA / "weights" / f"{WEIGHTS}.safetensors"), backbone=BACKBONE,
        classes=open_pack(folder / "pack").classes, resolution=RESOLUTION, budget_s=0.0, seed=0, began=time.time(),
    )  # fmt: skip
    task.write(out / "task.json")
    return task


def _tutorial(
    folder: Path, ranges: Mapping[str, Any], depth: list[int], processes: int, threads: int, *, n_trials: int
) -> tuple[float, str]:  # fmt: skip
    """Seconds from its start until its answer on test is known, and which answers are right."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        task = _task(folder, out)
        space = {**ranges,
            "depth": depth, "trials": n_trials, "processes": processes, "threads": threads, "batch_size": BATCH
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


def _graft(folder: Path, depth: list[int], *, plain: bool) -> tuple[float, str, float]:
    """Seconds from the start of its processes until the bundle is here, which of its answers on test are right, and
    the seconds of its training steps alone, had both cores done nothing else at their peak."""
    (low, high), began = depth, time.monotonic()
    space: dict[str, Any] = {
        "data.resolution": RESOLUTION, "data.batch_size": BATCH, "schedule": "freeze", "regularizer": "l2",
        "schedule.freeze.depth": {"low": low, "high": high} if high > low else low,
        **{place: {"low": RANGES[name][0], "high": RANGES[name][1]} for name, place in PLACES.items()},
        "data.mixup_alpha": 0.0, "optimizer.momentum": 0.9, "data.augmentation": 0.8,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        service = stack.enter_context(api(Path(name) / "home"))
        stack.enter_context(running(["worker"], service.env, service.home / "worker-0.log"))
        stack.enter_context(running(["worker", "--queue", "trials"], service.env, service.home / "worker-1.log"))
        client = stack.enter_context(Client(service.url, service.key))
        source = client.sources.register(str(DATA / "weights" / f"{WEIGHTS}.safetensors"), BACKBONE)
        dataset = client.datasets.wait(client.datasets.upload(folder / "pictures.zip").id)
        job = client.jobs.submit(
            dataset.id, sources=[source.ref], space=space, trials=N_TRIALS, anchors=False, n_folds=1, seed=0,
            pruner="none" if plain else "halving",
        )  # fmt: skip
        done = client.jobs.wait(job.id)
        if done.result is None:
            raise RuntimeError(f"the job ended {done.state}: {done.error}")
        client.jobs.download_bundle(job.id, Path(name) / "bundle.zip")
        took = time.monotonic() - began
        unzip(Path(name) / "bundle.zip", Path(name) / "bundle")
        task = _task(folder, Path(name) / "out")
        operations = sum(_operations(client, trial) for trial in client.jobs.trials(job.id))
        answers = right(bundle_on_test(task, Path(name) / "bundle"), task.data("test")[1])
    return took, answers, operations / bounds.peak_flops() / (os.cpu_count() or 1)


def _operations(client: Client, trial: Trial) -> float:
    """Of all the steps that a trial has taken."""
    recipe = Recipe.model_validate(trial.recipe)
    n_steps = max((report.step for report in client.trials.curve(trial.id)), default=0)
    frozen = n_frozen(recipe, N_STAGES)
    return n_steps * BATCH * bounds.of_training(BACKBONE, RESOLUTION, n_frozen=frozen)


PLACES = {"lr": "optimizer.lr_head", "ratio": "optimizer.inner_ratio", "decay": "regularizer.l2.beta", "steps": "steps"}
