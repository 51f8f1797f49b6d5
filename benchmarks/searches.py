"""A whole search beside what people would use instead: the same machine, weights, splits and wall time.

    python -m benchmarks searches --make-rivals      installs Ray and AutoGluon in environments of their own, once
    python -m benchmarks searches                    4 cases x 3 seeds x 7 contenders, 80 minutes on two cores
    python -m benchmarks searches --only graft --seeds 1 --budget-s 30

Every contender has one core and everything it starts shares it, so two of them run at a time. Its clock begins with its
process; start-up, asking and finishing count. What is done is in `benchmarks/out/searches/progress.jsonl`, and is not
done again. A contender that fails, or is not installed, is a row with its error.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.method_cases import DATA
from benchmarks.method_run import Record, load_progress, remember
from benchmarks.processes import ROOT
from benchmarks.rivals.environments import PACKAGES, make, python_of
from benchmarks.rivals.task import Task
from benchmarks.search_cases import BACKBONE, CASES, RESOLUTION, WEIGHTS, SearchCase, folder_of
from benchmarks.search_table import figures_of, shown_of
from benchmarks.table import OUT, machine, publish
from intake.packs import open_pack

BUDGET_S = 120.0
N_SEEDS = 3
GRACE_S = 180.0  # after the budget, for what is asked only to draw curves; more where the cores are busy


@dataclass(frozen=True)
class Contender:
    """A program of `benchmarks.rivals`, its arguments after the task, the environment it lives in."""

    name: str
    module: str
    argument: str = ""
    environment: str = ""


CONTENDERS = (
    Contender("graft", "graft_job"),
    Contender("random", "optuna_loop", "random"),
    Contender("optuna_tpe", "optuna_loop", "tpe"),
    Contender("expert_bit", "fixed_recipe", "bit_hyperrule"),
    Contender("expert_l2_sp", "fixed_recipe", "l2_sp"),
    Contender("ray_asha", "ray_asha", environment="ray"),
    Contender("autogluon", "autogluon_fit", environment="autogluon"),
)


@dataclass(frozen=True)
class Entry:
    """One contender on one case with one seed."""

    case: SearchCase
    seed: int
    contender: Contender
    budget_s: float

    @property
    def key(self) -> str:
        return f"{self.case.name}/{self.seed}/{self.contender.name}/{self.budget_s:g}"


def main(argv: Sequence[str]) -> int:
    given = _arguments(argv)
    out: Path = given.folder
    out.mkdir(parents=True, exist_ok=True)
    if given.make_rivals:
        make(given.rivals_env)
        return 0
    facts, only = machine(), re.compile(given.only)
    every = [
        Entry(case, seed, contender, given.budget_s)
        for seed in range(given.seeds) for case in CASES for contender in CONTENDERS
    ]  # fmt: skip
    known = load_progress(out / "progress.jsonl")
    redo = {key for key, record in known.items() if given.again and record["error"]}
    missing = [e for e in every if only.search(e.key) and (e.key not in known or e.key in redo)]
    weights = given.data / "weights" / f"{WEIGHTS}.safetensors"
    if missing and not weights.exists():
        raise SystemExit(f"no photographs and weights in {given.data}; see --data")
    folders = {(e.case, e.seed): folder_of(e.case, e.seed, given.data, out) for e in missing}
    runner = Runner(given.rivals_env, weights, folders, out / "runs", given.grace_s)
    began = time.monotonic()
    for n, record in enumerate(runner.run(missing, given.processes), 1):
        remember(out / "progress.jsonl", record)
        known[record["key"]] = record
        told = record["error"] or "val log-loss {log_loss:.4f}".format(**record["incumbents"][-1]["val"])
        print(f"[{n}/{len(missing)}, {time.monotonic() - began:.0f} s] {record['key']}: {told}", flush=True)
    records = [known[e.key] for e in every if e.key in known]
    publish("searches", figures_of(records, given.budget_s), facts, shown=shown_of(records, given.budget_s))
    return 0


class Runner:
    """Runs entries, each in processes of its own on a core of its own."""

    def __init__(
        self, environments: Path, weights: Path, folders: Mapping[tuple[SearchCase, int], Path], runs: Path,
        grace_s: float,
    ) -> None:  # fmt: skip
        self.environments, self.weights, self.folders, self.runs = environments, weights, folders, runs
        self.grace_s = grace_s
        self._cores: SimpleQueue[int] = SimpleQueue()
        for core in sorted(os.sched_getaffinity(0)):
            self._cores.put(core)

    def run(self, entries: Sequence[Entry], n_processes: int) -> Iterator[Record]:
        with ThreadPoolExecutor(min(n_processes, len(os.sched_getaffinity(0)))) as pool:
            for done in as_completed([pool.submit(self.one, entry) for entry in entries]):
                yield done.result()

    def one(self, entry: Entry) -> Record:
        n_classes = len(open_pack(self.folders[entry.case, entry.seed] / "pack").classes)
        record: Record = {
            "key": entry.key, "case": entry.case.name, "seed": entry.seed, "contender": entry.contender.name,
            "budget_s": entry.budget_s, "n_classes": n_classes, "error": None, "incumbents": [], "searched_s": None,
            "others": {}, "facts": {},
        }  # fmt: skip
        core = self._cores.get()
        try:
            return record | self._contend(entry, core)
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            return record | {"error": f"{type(error).__name__}: {error}"[:500]}
        finally:
            self._cores.put(core)

    def _contend(self, entry: Entry, core: int) -> dict[str, Any]:
        python = python_of(self.environments, entry.contender.environment)
        if not python.exists():
            raise RuntimeError(f"not installed: python -m benchmarks searches --make-rivals ({python})")
        folder = self.folders[entry.case, entry.seed]
        out = self.runs / re.sub(r"[^\w.-]+", "_", entry.key)
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").unlink(missing_ok=True)
        task = Task(
            folder=str(folder), out=str(out), weights=str(self.weights), backbone=BACKBONE,
            classes=open_pack(folder / "pack").classes, resolution=RESOLUTION, budget_s=entry.budget_s, seed=entry.seed,
            began=time.time(),
        )  # fmt: skip
        task.write(out / "task.json")
        argv = [str(python), "-m", f"benchmarks.rivals.{entry.contender.module}", str(out / "task.json")]
        self._watch([*argv, entry.contender.argument] if entry.contender.argument else argv, entry, out, core)
        found: dict[str, Any] = json.loads((out / "result.json").read_text("utf-8"))
        if not found["incumbents"]:
            raise RuntimeError(f"nothing found in {entry.budget_s:g} s")
        return found

    def _watch(self, argv: list[str], entry: Entry, out: Path, core: int) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
        env = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (out / "log").open("wb") as log:
            child = subprocess.Popen(
                ["taskset", "-c", str(core), *argv], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            code = child.wait(timeout=entry.budget_s + self.grace_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not over {self.grace_s:g} s after its budget") from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if code:
            last = (out / "log").read_text("utf-8", errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"ended with {code}: {' '.join(last)}")


def _arguments(argv: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks searches", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="wall time of each contender")
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="how many splits of each dataset")
    parser.add_argument("--only", default="", help="a regular expression that `case/seed/contender/budget` must match")
    parser.add_argument("--again", action="store_true", help="run those again that failed")
    parser.add_argument("--processes", type=int, default=2, help="contenders at a time, one core each")
    parser.add_argument(
        "--grace-s", type=float, default=GRACE_S, help="how long after its budget one may still be busy"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the photographs, weights/ in it")
    parser.add_argument("--folder", type=Path, default=OUT / "searches", help="where splits, runs and progress lie")
    parser.add_argument("--rivals-env", type=Path, help=f"folder of the environments of {', '.join(PACKAGES)}")
    parser.add_argument("--make-rivals", action="store_true", help="make those environments, and nothing else")
    given = parser.parse_args(argv)
    given.rivals_env = given.rivals_env or given.folder / "environments"
    return given
