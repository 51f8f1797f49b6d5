"""What search methods are measured on in milliseconds: formulas, and tables of real fine-tuning results.

A proposal is answered by a loss, or by the curve that ends in it: pairs (share of a full trial, loss).
"""

import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.model_selection import KFold

from benchmarks.record import TABLE, sobol_values
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Space, Value

Values = Mapping[str, Value]
Curve = list[tuple[float, float]]
Floats = NDArray[np.float64]

SHARES = tuple(round(0.1 * k, 1) for k in range(1, 11))  # where a surrogate says what a curve shows
LEAST_SPEARMAN = 0.8  # of held-out recipes; a surrogate that ranks worse stands for nothing
N_USUAL = 1024  # random recipes whose median is "usual"
D = 12


@dataclass(frozen=True)
class Objective:
    """A search problem. `answer` is the whole curve of a recipe; formulas have one point only."""

    name: str
    space: Space
    answer: Callable[[Values], Curve]
    best: float  # the least loss known

    @property
    def has_curves(self) -> bool:
        return len(self.answer(self.space.defaults())) > 1

    @cached_property
    def usual(self) -> float:
        """The median over random recipes."""
        return float(np.median([self.answer(values)[-1][1] for values in sobol_values(self.space, N_USUAL, seed=1)]))


# --- formulas, with an optimum that each seed draws anew: no method gains by looking in the middle


def sphere(seed: int) -> Objective:
    """f(x) = sum_j (x_j - o_j)^2 on [-1, 1]^12."""
    return _numbers("sphere", seed, lambda z: float(z @ z))


def rastrigin(seed: int) -> Objective:
    """f(x) = sum_j z_j^2 + 0.2 (1 - cos(4 pi z_j)), z = x - o: the sphere with a hollow every half."""
    return _numbers("rastrigin-like", seed, lambda z: float(z @ z + 0.2 * (1 - np.cos(4 * math.pi * z)).sum()))


def _numbers(name: str, seed: int, formula: Callable[[Floats], float]) -> Objective:
    optimum = np.random.default_rng(seed).uniform(-0.8, 0.8, D)
    paths = [f"x{j}" for j in range(D)]
    space = Space(
        dimensions=tuple(Dimension(path=path, range=FloatRange(low=-1.0, high=1.0, default=0.0)) for path in paths)
    )

    def answer(values: Values) -> Curve:
        return [(1.0, formula(np.array([values[path] for path in paths], float) - optimum))]

    return Objective(name, space, answer, best=0.0)


ARMS = {"a": 2, "b": 3, "c": 1, "d": 0}  # the methods and how many strengths each has


def conditional(seed: int) -> Objective:
    """A choice of method with strengths of its own, beside two rates, a depth and a switch.

    f = g_m + sum over the method's strengths (s - o)^2 + (log10 lr - o)^2 / 2 + (log10 ratio - o)^2 / 4
        + (depth - o)^2 / 25 + 0.2 [switch is wrong], where the best rate lies elsewhere for every method.
    """
    rng = np.random.default_rng(seed)
    penalty = dict(zip(ARMS, rng.permutation([0.0, 0.15, 0.3, 0.6]).tolist(), strict=True))
    strengths = {f"{arm}{k}": float(rng.uniform(-0.8, 0.8)) for arm, n in ARMS.items() for k in range(n)}
    rate = {arm: float(rng.uniform(-3, -1)) for arm in ARMS}
    ratio, depth, switch = float(rng.uniform(-1.5, -0.3)), int(rng.integers(0, 6)), bool(rng.integers(2))
    dimensions = [
        Dimension(path="method", range=Choice(options=tuple(ARMS), default="a")),
        Dimension(path="lr", range=FloatRange(low=1e-4, high=1.0, log=True, default=1e-2)),
        Dimension(path="ratio", range=FloatRange(low=1e-2, high=1.0, log=True, default=0.1)),
        Dimension(path="depth", range=IntRange(low=0, high=5, default=0)),
        Dimension(path="switch", range=Choice(options=(False, True), default=False)),
    ]
    for name in strengths:
        only = (Condition(path="method", values=(name[0],)),)
        dimensions.append(Dimension(path=name, range=FloatRange(low=-1.0, high=1.0, default=0.0), when=only))

    def answer(values: Values) -> Curve:
        arm = str(values["method"])
        loss = penalty[arm] + (math.log10(float(values["lr"])) - rate[arm]) ** 2 / 2
        loss += (math.log10(float(values["ratio"])) - ratio) ** 2 / 4 + (int(values["depth"]) - depth) ** 2 / 25
        loss += 0.2 * (values["switch"] != switch)
        loss += sum((float(values[f"{arm}{k}"]) - strengths[f"{arm}{k}"]) ** 2 for k in range(ARMS[arm]))
        return [(1.0, loss)]

    return Objective("conditional", Space(dimensions=tuple(dimensions)), answer, best=0.0)


FORMULAS = {"sphere": sphere, "rastrigin-like": rastrigin, "conditional": conditional}


# --- tables


@dataclass(frozen=True)
class Replay:
    """A table's dataset, answered by a surrogate of log-loss on val; `spearman` is that of held-out recipes."""

    objective: Objective
    spearman: float
    n_runs: int

    @property
    def stands(self) -> bool:
        return self.spearman >= LEAST_SPEARMAN


def read_table(path: Path = TABLE) -> list[dict[str, Any]]:
    """The datasets of the table; none without the file."""
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["datasets"]
    return found


@cache
def replays() -> dict[str, Replay]:
    """Every dataset of the table by name. Fitted once per process, the same in all."""
    return {data["name"]: replay(data) for data in read_table()}


def replay(data: Mapping[str, Any]) -> Replay:
    space = Space.model_validate(data["space"])
    points = np.stack([encoded(space, run["values"]) for run in data["runs"]])
    curves = np.stack([curve_of(run, data["n_classes"]) for run in data["runs"]])
    spearman = held_out_spearman(points, np.log(curves))
    answer = Surrogate(space, _forest().fit(points, np.log(curves)))
    best = float(curves[:, -1].min())
    return Replay(Objective(data["name"], space, answer, best), spearman, len(data["runs"]))


def held_out_spearman(points: Floats, targets: Floats, n_folds: int = 10) -> float:
    """Rank correlation of the final loss with what forests that have not seen it say, folds pooled."""
    said = np.zeros(len(points))
    for train, rest in KFold(n_folds, shuffle=True, random_state=0).split(points):
        said[rest] = _forest().fit(points[train], targets[train]).predict(points[rest])[:, -1]
    return float(spearmanr(said, targets[:, -1]).statistic)


def curve_of(run: Mapping[str, Any], n_classes: int) -> Floats:
    """Log-loss at every share of `SHARES`: between evaluations a straight line, from chance at the start, and at the
    end what the run is ranked by, its best evaluation. A loss far above chance says no more than "worse than chance".
    """
    chance = math.log(n_classes)
    known = [(0.0, chance), *((share, loss) for share, _, loss in run["curve"] if loss is not None)]
    shares, losses = zip(*known, strict=True)
    found = np.interp(SHARES, shares, losses)
    found[-1] = run["val"][1] if "val" in run else 2 * chance
    clipped: Floats = np.clip(found, 1e-4, 2 * chance)
    return clipped


def encoded(space: Space, values: Values) -> Floats:
    """One number per dimension, as a forest likes them: options by their place, logarithms where a range is one, and
    below every value where a dimension is not active."""
    return np.array([_code(d, values[d.path]) if d.path in values else -1e3 for d in space.dimensions])


def _code(dimension: Dimension, value: Value) -> float:
    if isinstance(dimension.range, Choice):
        return float(dimension.range.options.index(value))
    return math.log(float(value)) if dimension.range.log else float(value)


class Surrogate:
    """A forest's curve for a recipe. Asks its trees directly: a hundred times faster than `predict` for one point."""

    def __init__(self, space: Space, forest: RandomForestRegressor) -> None:
        self.space, self._trees = space, [tree.tree_ for tree in forest.estimators_]

    def __call__(self, values: Values) -> Curve:
        point = encoded(self.space, values).astype(np.float32)[None]
        said = np.mean([tree.predict(point).reshape(-1) for tree in self._trees], axis=0)
        return list(zip(SHARES, np.exp(said).tolist(), strict=True))


def _forest() -> RandomForestRegressor:
    return RandomForestRegressor(100, min_samples_leaf=2, max_features=0.5, random_state=0)


def objectives_of(name: str, seed: int) -> Objective:
    """By name: a formula at this seed, or a table's dataset."""
    return FORMULAS[name](seed) if name in FORMULAS else replays()[name].objective


def every_name(tables: Sequence[str]) -> list[str]:
    return [*FORMULAS, *tables]
