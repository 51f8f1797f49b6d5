"""What the comparison of whole searches comes to: every pair of Graft and another on one dataset and seed, the aims."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.method_run import Record, bits
from benchmarks.search_maths import Floats, Span, area, incumbents, loss_at, paired_span, time_to_reach
from benchmarks.table import Figure, grid

OURS = "graft"
RIVALS = ("random", "optuna_tpe", "ray_asha", "autogluon")  # to be passed in a third of the budget
EXPERTS = ("expert_bit", "expert_l2_sp")  # and the anchors: to be no worse on test
LOOKS = (1 / 6, 1 / 3, 2 / 3, 1.0)  # of the budget, at which val and test are printed
LEAST_ITEMS = 1000
WORST = -1.0  # points that the lower bound may lie below zero


@dataclass(frozen=True)
class Outcome:
    """One contender on one case and seed."""

    record: Record

    @property
    def name(self) -> str:
        return str(self.record["contender"])

    @property
    def place(self) -> tuple[str, int]:
        return str(self.record["case"]), int(self.record["seed"])

    @property
    def error(self) -> str | None:
        return None if self.record["error"] is None else str(self.record["error"])

    @property
    def final(self) -> Any:
        return self.record["incumbents"][-1]

    @property
    def before(self) -> float:
        """Log-loss of somebody who knows nothing."""
        return math.log(self.record["n_classes"])

    @property
    def val(self) -> list[tuple[float, float]]:
        return incumbents([(one["t"], one["val"]["log_loss"]) for one in self.record["incumbents"]])

    @property
    def test(self) -> list[tuple[float, float]]:
        """Of the incumbents on val: not always better than the one before."""
        return [(one["t"], one["test"]["log_loss"]) for one in self.record["incumbents"] if "test" in one]

    @property
    def right(self) -> Floats:
        return bits(self.final["right"])

    def anchors(self) -> dict[str, Floats]:
        return {name: bits(text) for name, text in self.record["others"].items()}

    def best_anchor(self) -> str | None:
        """The one that val would have chosen."""
        known = {n: v for n, v in self.record["facts"].get("anchors_val", {}).items() if n in self.record["others"]}
        return min(known, key=lambda name: float(known[name])) if known else None


@dataclass(frozen=True)
class Pair:
    """Graft and another on one case and seed. `right` is None where the other left no predictions."""

    place: tuple[str, int]
    other: str
    passed_s: float | None  # when Graft was as good on val as the other in the end; the whole budget if never
    budget_s: float
    ours: Floats
    right: Floats | None

    @property
    def name(self) -> str:
        return f"{self.place[0]}, seed {self.place[1]}: graft and {self.other}"

    @property
    def difference(self) -> Floats | None:
        return None if self.right is None else self.ours - self.right

    @property
    def never(self) -> bool:
        return self.passed_s is not None and self.passed_s >= self.budget_s


def pairs_of(records: Sequence[Record], budget_s: float) -> list[Pair]:
    outcomes = [Outcome(record) for record in records]
    ours = {o.place: o for o in outcomes if o.name == OURS and o.error is None}
    found = []
    for other in outcomes:
        graft = ours.get(other.place)
        if graft is None or other.name == OURS or other.error is not None:
            continue
        passed_s = time_to_reach(graft.val, other.final["val"]["log_loss"], budget_s)
        found.append(Pair(other.place, other.name, passed_s, budget_s, graft.right, other.right))
    for place, graft in ours.items():
        if best := graft.best_anchor():
            found.append(Pair(place, "best anchor", None, budget_s, graft.right, graft.anchors()[best]))
    return found


def figures_of(records: Sequence[Record], budget_s: float) -> list[Figure]:
    outcomes = [Outcome(record) for record in records]
    return [*_own(outcomes, budget_s), *_of_pairs(pairs := pairs_of(records, budget_s)), *aims(pairs, budget_s)]


def _own(outcomes: Sequence[Outcome], budget_s: float) -> Iterator[Figure]:
    for outcome in outcomes:
        name = f"{outcome.place[0]}, seed {outcome.place[1]}, {outcome.name}"
        if outcome.error is not None:
            yield Figure(f"{name}: failed", None, "", columns={"error": outcome.error})
            continue
        final, facts = outcome.final, {k: v for k, v in outcome.record["facts"].items() if k != "anchors_val"}
        columns = {"val_over_time": outcome.val, "test_over_time": outcome.test, "facts": facts}
        yield Figure(f"{name}: val log-loss", final["val"]["log_loss"], "nats", columns=columns)
        yield Figure(f"{name}: test accuracy", final["test"]["accuracy"], "")
        yield Figure(f"{name}: test log-loss", final["test"]["log_loss"], "nats")
        yield Figure(f"{name}: val log-loss, mean over time", area(outcome.val, budget_s, outcome.before), "nats")
        yield Figure(f"{name}: test log-loss, mean over time", area(outcome.test, budget_s, outcome.before), "nats")
        yield Figure(f"{name}: end", outcome.record["searched_s"], "s")


def _of_pairs(pairs: Sequence[Pair]) -> Iterator[Figure]:
    for pair in pairs:
        if pair.passed_s is not None:
            yield Figure(f"{pair.name}: time to pass it on val", pair.passed_s, "s", columns={"never": pair.never})
        if pair.difference is not None:
            told = paired_span([pair.difference])
            columns = {"low": 100 * told.low, "high": 100 * told.high, "n_items": len(pair.difference)}
            yield Figure(f"{pair.name}: test accuracy, difference", 100 * told.mean, "points", columns=columns)


def aims(pairs: Sequence[Pair], budget_s: float) -> list[Figure]:
    """Of each rival the median time to pass it; of experts and the best anchor the test difference, pairs together."""
    found = []
    for rival in RIVALS:
        times = [p.passed_s for p in pairs if p.other == rival and p.passed_s is not None]
        value = float(np.median(times)) if times else None
        columns = {"n_pairs": len(times), "n_never": sum(p.never for p in pairs if p.other == rival)}
        name = f"median time to pass {rival} on val"
        found.append(Figure(name, value, "s", ("<=", budget_s / 3), columns))
    for other in (*EXPERTS, "best anchor"):
        told, n_items, n_pairs = pooled(pairs, other)
        enough = n_items >= LEAST_ITEMS
        high = None if told is None else 100 * told.high
        counts: dict[str, float | None] = {"n_pairs": n_pairs, "n_items": n_items, "high": high}
        low = 100 * told.low if told is not None and enough else None
        mean = 100 * told.mean if told is not None and enough else None
        found.append(Figure(f"test accuracy over {other}, lower bound", low, "points", (">=", WORST), counts))
        found.append(Figure(f"test accuracy over {other}, mean", mean, "points", (">", 0.0), counts))
    return found


def pooled(pairs: Sequence[Pair], other: str) -> tuple[Span | None, int, int]:
    """The mean difference over all pairs with one other, and how many items and pairs it rests on."""
    differences = [d for p in pairs if p.other == other and (d := p.difference) is not None]
    n_items = sum(map(len, differences))
    return (paired_span(differences) if differences else None), n_items, len(differences)


# --- as text


def shown_of(records: Sequence[Record], budget_s: float) -> str:
    outcomes, pairs = [Outcome(record) for record in records], pairs_of(records, budget_s)
    parts = [grid(_rows(outcomes, pairs, budget_s)), grid(_anchor_rows(pairs)), grid(_over_time(outcomes, budget_s))]
    lines = [["aim", "value", "unit", "bound", "pairs", "holds"]]
    for figure in aims(pairs, budget_s):
        row = figure.row()
        holds = {True: "yes", False: "NO", None: ""}[figure.holds]
        value = "-" if figure.value is None else f"{figure.value:.2f}"
        lines.append([figure.figure, value, figure.unit, row["aim"], str(row["n_pairs"]), holds])
    return "\n\n".join([*parts, grid(lines)])


def _rows(outcomes: Sequence[Outcome], pairs: Sequence[Pair], budget_s: float) -> list[list[str]]:
    by_place = {(p.place, p.other): p for p in pairs}
    rows = [[
        "case", "seed", "contender", "val loss", "test loss", "test acc", "mean val loss", "end s",
        "graft passes it, s", "graft's test acc less its, points",
    ]]  # fmt: skip
    for o in sorted(outcomes, key=lambda o: o.place):
        head = [o.place[0], str(o.place[1]), o.name]
        if o.error is not None:
            rows.append([*head, *["-"] * 6, o.error[:80]])
            continue
        final, pair = o.final, by_place.get((o.place, o.name))
        passed = "" if pair is None or pair.passed_s is None else "never" if pair.never else f"{pair.passed_s:.1f}"
        rows.append([
            *head, f"{final['val']['log_loss']:.4f}", f"{final['test']['log_loss']:.4f}",
            f"{final['test']['accuracy']:.3f}", f"{area(o.val, budget_s, o.before):.4f}",
            f"{o.record['searched_s']:.1f}", passed, "" if pair is None else _points(pair),
        ])  # fmt: skip
    return rows


def _anchor_rows(pairs: Sequence[Pair]) -> list[list[str]]:
    rows = [["case", "seed", "graft's test acc less that of its best anchor on val, points"]]
    return rows + [[p.place[0], str(p.place[1]), _points(p)] for p in pairs if p.other == "best anchor"]


def _points(pair: Pair) -> str:
    if pair.difference is None:
        return ""
    told = paired_span([pair.difference])
    return f"{100 * told.mean:+.1f} [{100 * told.low:+.1f}, {100 * told.high:+.1f}] on {len(pair.difference)}"


def _over_time(outcomes: Sequence[Outcome], budget_s: float) -> list[list[str]]:
    """Mean over the cases and seeds that a contender has: val log-loss, test log-loss."""
    rows = [["val, test log-loss after", *(f"{share * budget_s:.0f} s" for share in LOOKS)]]
    for name in dict.fromkeys(o.name for o in outcomes):
        own = [o for o in outcomes if o.name == name and o.error is None]
        if own:
            cells = []
            for share in LOOKS:
                val = np.mean([loss_at(o.val, share * budget_s, o.before) for o in own])
                test = np.mean([loss_at(o.test, share * budget_s, o.before) for o in own])
                cells.append(f"{val:.4f}, {test:.4f}")
            rows.append([name, *cells])
    return rows
