"""What do recipes of past jobs save? Searches with and without them on response surfaces that are made up.

A world has seven datasets. On each, the score of a recipe falls with the squared distance of its numbers from an
optimum, and every option of a choice is worth something; optimum and options depend smoothly on what the dataset is
like, plus a part of its own, and each trial sees noise. Every dataset is searched cold (three anchors, TPE); then each
is searched again with the other six as its history. In a related world past jobs know something; in an unrelated one
the surfaces have nothing in common, however alike the datasets look: what does being misled cost?

Figure: regret of the best recipe so far by its true score, as a share of what the best anchor leaves to be gained, mean
over datasets and worlds. Not fine-tuning: it tests the portfolio, not the world. `python -m benchmarks warm`.
"""

from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import Figure
from domain.catalogue import catalogue
from domain.default_space import anchors, at_defaults, job_space
from domain.history import Meta, PastJob, PastTrial
from domain.job import Budget, JobSpec, Objective, ResolvedSource, Values
from domain.space import Choice, Dimension, Space
from domain.states import TrialState
from search.study import Past, Search
from search.warm import nearest, portfolio, room, weighed

Floats = NDArray[np.float64]
Tried = list[tuple[Values, float]]  # recipes in their order, each with the value that was seen
N_WORLDS, N_DATASETS, N_TRIALS = 8, 7, 20
AFTER = (4, 6, 10, 20)  # trials, anchors included
OWN, NOISE = 0.1, 0.02  # of a dataset alone: the spread of its optimum; of a trial: against scores from 0 to about 1
SOURCE = ResolvedSource(ref="torchvision:resnet18", backbone="resnet18", kind="torchvision")


def a_job() -> JobSpec:
    space = job_space("classification", (SOURCE,), catalogue(), n_train=1000, has_teacher=False)
    return JobSpec(
        task="classification", sources=(SOURCE,), space=space, budget=Budget(trials=N_TRIALS), n_folds=1,
        objectives=(Objective(name="accuracy"),),
    )  # fmt: skip


@dataclass(frozen=True)
class Surface:
    """The true score of every recipe on one dataset."""

    meta: Meta
    space: Space
    optimum: dict[str, float]  # of the numbers, each on its axis from 0 to 1
    curvature: dict[str, float]
    options: dict[str, Floats]  # worth of each option

    def score(self, values: Values) -> float:
        found = 1.0
        for dimension in self.space.dimensions:
            value = values.get(dimension.path)
            if value is None:
                continue
            if isinstance(dimension.range, Choice):
                found += float(self.options[dimension.path][dimension.range.options.index(value)])
            else:
                off = place(dimension, float(value)) - self.optimum[dimension.path]
                found -= self.curvature[dimension.path] * off**2
        return found

    @property
    def best(self) -> float:
        """Of all recipes: every number at its optimum, every choice at its best option."""
        return 1.0 + sum(float(worth.max()) for worth in self.options.values())


def place(dimension: Dimension, value: float) -> float:
    range_ = dimension.range
    assert not isinstance(range_, Choice)
    low, high = float(range_.low), float(range_.high)
    if range_.log:
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / max(high - low, 1e-12))


def world(spec: JobSpec, seed: int, *, related: bool) -> list[Surface]:
    """Datasets of all sizes; what suits them follows from what they are like, or in an unrelated world from nothing."""
    rng = np.random.default_rng(seed)
    law = Law.drawn(spec, rng)
    found = []
    for _ in range(N_DATASETS):
        like = rng.normal(size=2)
        n_train = int(1000 * 4.0 ** like[0])
        meta = Meta(
            n_train=n_train, n_classes=10, per_class_mean=n_train / 10, per_class_min=max(1, n_train // 15),
            resolution=224, backbone="resnet18", probe_accuracy=0.64 + 0.18 * float(np.tanh(like[1])), chance=0.1,
        )  # fmt: skip
        found.append((law if related else Law.drawn(spec, rng)).surface(spec.space, meta, like, rng))
    return found


@dataclass(frozen=True)
class Law:
    """How what suits a dataset follows from what it is like, for every dimension by its path."""

    base: dict[str, float]  # the optimum of an average dataset
    slope: dict[str, Floats]
    curvature: dict[str, float]
    favour: dict[str, Floats]  # (options, 2)

    @classmethod
    def drawn(cls, spec: JobSpec, rng: np.random.Generator) -> "Law":
        numbers = [d.path for d in spec.space.dimensions if not isinstance(d.range, Choice)]
        choices = {d.path: len(d.range.options) for d in spec.space.dimensions if isinstance(d.range, Choice)}
        return cls(
            base={path: rng.uniform(0.1, 0.9) for path in numbers},
            slope={path: rng.normal(size=2) for path in numbers},
            curvature={path: float(rng.exponential(0.5)) for path in numbers},
            favour={path: 0.05 * rng.normal(size=(n, 2)) for path, n in choices.items()},
        )

    def surface(self, space: Space, meta: Meta, like: Floats, rng: np.random.Generator) -> Surface:
        optimum = {
            path: float(np.clip(base + 0.25 * np.tanh(self.slope[path] @ like / 2) + OWN * rng.normal(), 0, 1))
            for path, base in self.base.items()
        }
        options = {path: table @ (like + 1) + 0.02 * rng.normal(size=len(table)) for path, table in self.favour.items()}
        return Surface(meta, space, optimum, self.curvature, options)


def search(spec: JobSpec, surface: Surface, seed: int, first: list[Values]) -> Tried:
    """The recipes that a job tries in its order, with the values that it sees."""
    rng = np.random.default_rng([seed, 1])
    study = Search(spec.space, direction="maximize", sampler="tpe", pruner="none", seed=seed)
    fixed = [*(values for _, values in anchors(spec)), *first]
    tried: Tried = []
    for number in range(N_TRIALS):
        values = fixed[number] if number < len(fixed) else study.ask(number).values
        value = surface.score(inside(spec, values)) + NOISE * float(rng.normal())
        tried.append((values, value))
        study.learn([Past(number, TrialState.COMPLETE, values, value)])
    return tried


def inside(spec: JobSpec, values: Values) -> Values:
    """The anchors' recipes may lie outside the space, where the surface says nothing: they score as the defaults do."""
    legal = all(d.path not in values or d.range.holds(values[d.path]) for d in spec.space.dimensions)
    return values if legal else at_defaults(spec, SOURCE.ref)


def past_of(name: str, surface: Surface, spec: JobSpec, tried: Tried) -> tuple[PastJob, list[PastTrial]]:
    names = [anchor for anchor, _ in anchors(spec)]
    trials = [
        PastTrial(
            number=n, values=values, value=value, backbone="resnet18", anchor=names[n] if n < len(names) else None
        )
        for n, (values, value) in enumerate(tried)
    ]  # fmt: skip
    return PastJob(id=name, meta=surface.meta, direction="maximize"), trials


def regrets(spec: JobSpec, surface: Surface, tried: Tried) -> list[float]:
    """After so many trials, the regret of the one that looks best; 1 is the best anchor, 0 nothing left."""
    true = [surface.score(inside(spec, values)) for values, _ in tried]
    seen = [value for _, value in tried]
    base = max(true[: len(anchors(spec))])
    picked = [true[int(np.argmax(seen[:n]))] for n in AFTER]
    return [(surface.best - score) / (surface.best - base) for score in picked]


def measure() -> list[Figure]:
    spec = a_job()
    n_first = room(spec.budget, len(anchors(spec)), 1.0)
    figures = []
    for related in (True, False):
        found: dict[str, list[list[float]]] = {"cold": [], "warm": []}
        for seed in range(N_WORLDS):
            surfaces = world(spec, seed, related=related)
            cold = [search(spec, surface, 100 * seed + n, []) for n, surface in enumerate(surfaces)]
            jobs = [past_of(f"job_{n}", s, spec, cold[n]) for n, s in enumerate(surfaces)]
            for n, surface in enumerate(surfaces):
                others = [job for m, (job, _) in enumerate(jobs) if m != n]
                near = weighed(nearest(surface.meta, others), {job.id: trials for job, trials in jobs})
                chosen = portfolio(spec.space, near, n_first, source_of=lambda _: SOURCE.ref) if near else []
                warm = search(spec, surface, 100 * seed + n, [s.values for s in chosen])
                found["cold"].append(regrets(spec, surface, cold[n]))
                found["warm"].append(regrets(spec, surface, warm))
        for at, n_trials in enumerate(AFTER):
            for name, rows in found.items():
                figures.append(Figure(
                    f"{'related' if related else 'unrelated'} past, {name}, regret after {n_trials} trials",
                    fmean(row[at] for row in rows), "of the anchors'", columns={"n": len(rows)},
                ))  # fmt: skip
    return figures
