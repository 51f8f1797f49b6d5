"""Every registered sampler on formulas and on replayed fine-tuning, many seeds: what is left to gain after a budget.

    python -m benchmarks optimizers                  all samplers; minutes on two cores
    python -m benchmarks optimizers --only 'tpe|random' --seeds 50

Regret is normalised: 0 is the best loss known, 1 the median random recipe. Budgets count in full trials; a trial that a
pruner stops or lets rest costs the share that it was trained. Each mean over seeds comes with a bootstrap interval.
"""

import argparse
import re
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.method_run import CONTEXT
from benchmarks.objectives import FORMULAS, LEAST_SPEARMAN, Objective, objectives_of, replays
from benchmarks.search_maths import Span, incumbents, loss_at, mean_ranks, normalised, span, wins
from benchmarks.table import Figure, grid, machine, publish
from domain.sampler import choose
from domain.states import TrialState
from search.registry import names
from search.study import Past, Search

BUDGETS = (10, 25, 50, 100)
N_SEEDS = 20
CAPPED = {"gp": (5, 50)}  # seeds and trials of a sampler whose asks cost too much for more
VARIANTS = ("none", "halving")  # pruners; formulas have no curves to prune by
BASELINE, DECIDING = "random", (25, 100)


@dataclass(frozen=True, order=True)
class Series:
    """One sampler with one pruner on one objective: a search per seed."""

    objective: str
    sampler: str
    pruner: str
    n_seeds: int
    budget: int


@dataclass(frozen=True)
class Played:
    series: Series
    found: tuple[tuple[tuple[float, float], ...], ...]  # incumbents of each seed: (full trials spent, loss)
    usual: tuple[float, ...]  # of each seed's objective
    best: float
    ask_s: tuple[float, ...]


def main(argv: Sequence[str]) -> int:
    given = _arguments(argv)
    facts = machine()
    tables = replays()
    for name, table in tables.items():
        left_out = "" if table.stands else ": left out, its surrogate ranks too badly"
        print(f"{name}: {table.n_runs} runs, held-out Spearman {table.spearman:.3f}{left_out}")
    objectives = [*FORMULAS, *(name for name, table in tables.items() if table.stands)]
    only = re.compile(given.only)
    wanted = [
        s for s in every_series(objectives, given.seeds) if only.search(f"{s.objective}, {s.sampler}, {s.pruner}")
    ]
    regrets = regrets_of(list(play_all(wanted, given.processes)))
    figures = [
        Figure(f"{name}: held-out Spearman of the surrogate", table.spearman, "", (">=", LEAST_SPEARMAN))
        for name, table in tables.items()
    ]
    publish("optimizers", [*figures, *figures_of(regrets)], facts, shown=shown_of(regrets, objectives))
    return 0


def every_series(objectives: Sequence[str], n_seeds: int) -> Iterator[Series]:
    """The slowest first, so that no core waits for another at the end."""
    for sampler in sorted(names("samplers"), key=lambda s: (s not in CAPPED, s)):
        seeds, budget = CAPPED.get(sampler, (n_seeds, max(BUDGETS)))
        for objective in reversed(objectives):
            # A pruner means several times as many asks: too many for those.
            for pruner in VARIANTS if objective not in FORMULAS and sampler not in CAPPED else VARIANTS[:1]:
                yield Series(objective, sampler, pruner, min(seeds, n_seeds), budget)


def play_all(wanted: Sequence[Series], n_processes: int) -> Iterator[Played]:
    began = time.monotonic()
    with ProcessPoolExecutor(n_processes, mp_context=CONTEXT) as pool:
        for n, done in enumerate(as_completed([pool.submit(play, series) for series in wanted]), 1):
            played = done.result()
            print(f"[{n}/{len(wanted)}, {time.monotonic() - began:.0f} s] {played.series}", flush=True)
            yield played


# --- one search, replayed


def play(series: Series) -> Played:
    found, usual, ask_s, best = [], [], list[float](), float("inf")
    for seed in range(series.n_seeds):
        objective = objectives_of(series.objective, seed)
        found.append(tuple(search_once(objective, series, seed, ask_s)))
        usual.append(objective.usual)
        best = min(objective.best, best)
    return Played(series, tuple(found), tuple(usual), best, tuple(ask_s))


def search_once(objective: Objective, series: Series, seed: int, ask_s: list[float]) -> list[tuple[float, float]]:
    """The incumbents of one search: (full trials spent, loss). As a worker does: what may go on from a rung goes on
    before anything new is asked for."""
    search = Search(objective.space, direction="minimize", sampler=series.sampler, pruner=series.pruner, seed=seed)
    spent, number, told = 0.0, 0, list[tuple[float, float]]()
    resting: dict[int, Past] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while spent < series.budget - 1e-9:
            ready = [n for n in search.promotable() if n in resting]
            if ready:
                past = resting.pop(ready[0])
                trial = Past(past.number, TrialState.RUNNING, past.values, attrs=past.attrs, curve=past.curve,
                             passed=past.rung)  # fmt: skip
            else:
                began = time.perf_counter()
                proposal = search.ask(number)
                ask_s.append(time.perf_counter() - began)
                trial = Past(number, TrialState.RUNNING, proposal.values, attrs=proposal.attrs)
                number += 1
            ended, share = run_trial(search, trial, objective)
            spent += share
            search.learn([ended])
            if ended.state == TrialState.PAUSED:
                resting[ended.number] = ended
            elif ended.state == TrialState.COMPLETE and ended.value is not None and spent <= series.budget + 1e-9:
                told.append((round(spent, 6), ended.value))
    return incumbents(told)


def run_trial(search: Search, trial: Past, objective: Objective) -> tuple[Past, float]:
    """The trial as it ended, and the share of a full one that was trained now."""
    before = trial.curve[-1][0] if trial.curve else 0.0
    curve = objective.answer(trial.values)

    def now(state: TrialState, n: int, **more: Any) -> Past:
        return Past(trial.number, state, trial.values, attrs=trial.attrs, curve=tuple(curve[:n]), **more)

    search.learn([trial])
    for n, (share, _) in enumerate(curve[:-1], 1):
        if share <= before:
            continue
        rung = search.rests_at(trial.number, curve[:n])
        if rung is not None:
            return now(TrialState.PAUSED, n, rung=rung, passed=trial.passed), share - before
        if search.should_prune(trial.number, curve[:n]):
            return now(TrialState.PRUNED, n), share - before
    return now(TrialState.COMPLETE, len(curve), value=curve[-1][1]), 1.0 - before


# --- figures

Regrets = dict[tuple[str, str, str, int], np.ndarray[Any, Any]]  # objective, sampler, pruner, budget -> one per seed


@dataclass(frozen=True)
class Standings:
    regrets: Regrets
    ask_s: dict[str, float]  # median by sampler

    def samplers(self, pruner: str = "none") -> list[str]:
        return sorted({s for _, s, p, _ in self.regrets if p == pruner})

    def objectives(self, pruner: str = "none") -> list[str]:
        return list(dict.fromkeys(o for o, _, p, _ in self.regrets if p == pruner))

    def columns(self, budget: int, pruner: str) -> dict[str, list[float]]:
        """Sampler -> its regrets, objective by objective and seed by seed; those without a cap."""
        kept = [s for s in self.samplers(pruner) if s not in CAPPED]
        return {s: [r for o in self.objectives(pruner) for r in self.regrets[o, s, pruner, budget]] for s in kept}


def regrets_of(played: Sequence[Played]) -> Standings:
    """Normalised regret of every search at every budget. Of a surrogate the best is the best that anything found."""
    best: dict[str, float] = {}
    for p in played:
        least = min((found[-1][1] for found in p.found if found), default=p.best)
        own = p.best if p.series.objective in FORMULAS else min(p.best, least)
        best[p.series.objective] = min(best.get(p.series.objective, own), own)
    regrets: Regrets = {}
    asks: defaultdict[str, list[float]] = defaultdict(list)
    for p in sorted(played, key=lambda p: p.series):
        s = p.series
        asks[s.sampler] += p.ask_s
        for budget in (b for b in BUDGETS if b <= s.budget):
            regrets[s.objective, s.sampler, s.pruner, budget] = np.array([
                normalised(loss_at(found, budget, usual), best[s.objective], usual)
                for found, usual in zip(p.found, p.usual, strict=True)
            ])  # fmt: skip
    return Standings(regrets, {sampler: float(np.median(times)) for sampler, times in asks.items()})


def figures_of(standings: Standings) -> list[Figure]:
    found = []
    for (objective, sampler, pruner, budget), values in standings.regrets.items():
        told = span(values)
        columns = {"low": round(told.low, 5), "high": round(told.high, 5), "n_seeds": len(values)}
        name = f"{objective}, {sampler}, pruner {pruner}: regret after {budget} trials"
        found.append(Figure(name, told.mean, "of the median random recipe's", columns=columns))
    for pruner in VARIANTS:
        for budget in BUDGETS:
            columns_ = standings.columns(budget, pruner)
            if len(columns_) > 1:
                for what, by_sampler in (("mean rank", mean_ranks(columns_)), ("wins", wins(columns_))):
                    found += [
                        Figure(f"{sampler}, pruner {pruner}: {what} after {budget} trials", value, what)
                        for sampler, value in by_sampler.items()
                    ]
    asked = sorted(standings.ask_s.items())
    return [*found, *(Figure(f"{name}: time per ask, median", 1e3 * s, "ms") for name, s in asked)]


def shown_of(standings: Standings, objectives: Sequence[str]) -> str:
    parts = []
    for pruner in VARIANTS:
        for budget in BUDGETS:
            if len(rows := _rows(standings, objectives, pruner, budget)) > 1:
                parts.append(f"regret after {budget} full trials, pruner {pruner}\n{grid(rows)}")
    return "\n\n".join([*parts, "\n".join(sentences(standings)), "\n".join(auto_sentences(standings))])


def _rows(standings: Standings, objectives: Sequence[str], pruner: str, budget: int) -> list[list[str]]:
    known = [o for o in objectives if o in standings.objectives(pruner)]
    columns = standings.columns(budget, pruner)
    ranks, won = (mean_ranks(columns), wins(columns)) if len(columns) > 1 else ({}, {})
    rows = [["sampler", *known, "mean rank", "wins", "ms per ask"]]
    for sampler in standings.samplers(pruner):
        cells = []
        for objective in known:
            values = standings.regrets.get((objective, sampler, pruner, budget))
            cells.append("-" if values is None else "{0.mean:.3f} [{0.low:.3f}, {0.high:.3f}]".format(span(values)))
        if any(cell != "-" for cell in cells):
            rank = f"{ranks[sampler]:.2f}" if sampler in ranks else "-"
            share = f"{won[sampler]:.0%}" if sampler in won else "-"
            rows.append([sampler, *cells, rank, share, f"{1e3 * standings.ask_s[sampler]:.1f}"])
    return rows


def sentences(standings: Standings) -> list[str]:
    """Does a sampler pay? Against random draws, and after them against all others, by objective and seed."""
    found = []
    for sampler in standings.samplers():
        if sampler == BASELINE:
            continue
        said = []
        for budget in DECIDING:
            against = {o: d for o in standings.objectives()
                       if (d := difference(standings, o, sampler, BASELINE, budget)) is not None}  # fmt: skip
            if against:
                better = [o for o, d in against.items() if d.high < 0]
                worse = [o for o, d in against.items() if d.low > 0]
                mean = float(np.mean([d.mean for d in against.values()]))
                told = f"after {budget} trials better on {len(better)}, worse on {len(worse)} of {len(against)}"
                said.append((mean, len(better), len(worse), f"{told} ({mean:+.3f} regret)"))
        if said:
            pays = all(mean < 0 and n_better > n_worse for mean, n_better, n_worse, _ in said)
            verdict = "pays" if pays else "does not pay"
            found.append(f"{sampler} {verdict} against random draws: {'; '.join(text for *_, text in said)}.")
    return found


def auto_sentences(standings: Standings) -> list[str]:
    """Whether what `auto` picks was beaten, at any budget, beyond chance."""
    found = []
    for objective in standings.objectives():
        space = objectives_of(objective, 0).space
        for budget in BUDGETS:
            pick = choose(space, n_trials=budget)[0]
            rivals = {s: d for s in standings.samplers() if s != pick
                      and (d := difference(standings, objective, s, pick, budget)) is not None}  # fmt: skip
            beaten_by = [f"{s} ({d.mean:+.3f})" for s, d in rivals.items() if d.high < 0]
            told = f"beaten by {', '.join(beaten_by)}" if beaten_by else "not beaten beyond chance"
            found.append(f"auto on {objective}, {budget} trials: {pick}, {told if rivals else 'not played'}.")
    return found


def difference(standings: Standings, objective: str, one: str, other: str, budget: int) -> Span | None:
    """Regret of one less the other's, over the seeds that both have; None where one of them has none."""
    pair = [standings.regrets.get((objective, sampler, "none", budget)) for sampler in (one, other)]
    if pair[0] is None or pair[1] is None:
        return None
    n = min(map(len, pair))  # type: ignore[arg-type]
    return span(pair[0][:n] - pair[1][:n])


def _arguments(argv: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks optimizers", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--seeds", type=int, default=N_SEEDS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="a regular expression that `objective, sampler, pruner` must match")
    return parser.parse_args(argv)
