"""How long does it take to ask for the next recipe, in the space of a default job?

Each sampler is asked twenty times for one trial more than the study holds, as a running job does. The first ask of a
fresh process learns the whole history before, every trial with its curve; modules are imported by then, as in a worker
that has run any trial.
"""

import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from api.submit import default_spec
from benchmarks.processes import ROOT
from benchmarks.table import Figure, quantile
from domain.catalogue import catalogue
from domain.space import Value
from domain.states import TrialState
from search.registry import load
from search.study import Past, Search

AIMED = ("random", "qmc", "tpe", "pshe2", "cmaes")
SIZES = {1_000: (30.0, 300.0), 10_000: (150.0, 1500.0)}  # trials -> aims in ms: in memory, first of a process
PRINTED = {"gp": 100, "nsga2": 1_000, "hazero": 1_000}  # without an aim, at so many trials
N_ASKS = 20
N_PROCESSES = 3
SEED = 11


def measure() -> list[Figure]:
    found: list[Figure] = []
    cases = [(sampler, size) for size in SIZES for sampler in AIMED] + list(PRINTED.items())
    with tempfile.TemporaryDirectory() as folder:
        for sampler, size in cases:
            warm, fresh = SIZES[size] if sampler in AIMED else (None, None)
            history = history_of(sampler, size)
            name = f"{sampler}, {size:,} trials"
            found.append(figure(f"{name}: ask, median of {N_ASKS}", quantile(asks_ms(sampler, history), 0.5), warm))
            path = Path(folder) / f"{sampler}-{size}.json"
            path.write_text(json.dumps([as_json(past) for past in history]), "utf-8")
            firsts = [first_ask_ms(sampler, path) for _ in range(N_PROCESSES)]
            found.append(figure(f"{name}: first ask of a process", quantile(firsts, 0.5), fresh))
    return found


def figure(name: str, value_ms: float, aim_ms: float | None) -> Figure:
    return Figure(name, value_ms, "ms", None if aim_ms is None else ("<=", aim_ms))


def new_search(sampler: str) -> Search:
    space = default_spec(catalogue()).space
    return Search(space, direction="minimize", sampler=sampler, pruner="median", seed=SEED)


def history_of(sampler: str, size: int) -> list[Past]:
    """As many finished trials, with the notes that the sampler keeps. None of them knew the others: asking with all of
    the past for each of ten thousand would take an hour."""
    draws = random.Random(SEED)
    search = new_search(sampler)
    return [finished(search, number, draws) for number in range(size)]


def finished(search: Search, number: int, draws: random.Random) -> Past:
    """Trial `number` as it is asked for, taken back, and complete."""
    proposal = search.ask(number)
    search.forget(number)
    value = loss(proposal.values) + 0.1 * draws.random()
    curve = tuple((step / 10, value + 1 - step / 10) for step in range(1, 11))
    attrs = proposal.attrs
    if "generation" in attrs.get("sampler", {}):  # more than any population here, so that all are told
        attrs = {"sampler": {"generation": number // 10}}
    return Past(number, TrialState.COMPLETE, proposal.values, value, curve, attrs=attrs)


def loss(values: dict[str, Value]) -> float:
    return abs(math.log10(float(values["optimizer.lr_head"])) + 2) + abs(float(values["data.augmentation"]) - 0.5)


def asks_ms(sampler: str, history: list[Past]) -> list[float]:
    """The time of each ask after the first."""
    search, draws, times = new_search(sampler), random.Random(SEED), []
    search.learn(history)
    search.ask(len(history))
    search.forget(len(history))
    for number in range(len(history), len(history) + N_ASKS):
        began = time.perf_counter()
        proposal = search.ask(number)
        times.append(1e3 * (time.perf_counter() - began))
        value = loss(proposal.values) + 0.1 * draws.random()
        search.learn([Past(number, TrialState.COMPLETE, proposal.values, value, attrs=proposal.attrs)])
    return times


def as_json(past: Past) -> list[Any]:
    return [past.number, dict(past.values), past.value, past.curve, dict(past.attrs)]


def first_ask_ms(sampler: str, path: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.ask", sampler, str(path)]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def main(sampler: str, path: str) -> None:
    """In a process of its own: learn the history in the file, ask once, print how long it took."""
    rows = json.loads(Path(path).read_text("utf-8"))
    history = [Past(n, TrialState.COMPLETE, v, y, tuple(map(tuple, c)), attrs=a) for n, v, y, c, a in rows]
    space = default_spec(catalogue()).space
    load("samplers", sampler)
    began = time.perf_counter()
    search = Search(space, direction="minimize", sampler=sampler, pruner="median", seed=SEED)
    search.learn(history)
    search.ask(len(history))
    print(1e3 * (time.perf_counter() - began))


if __name__ == "__main__":
    main(*sys.argv[1:])
