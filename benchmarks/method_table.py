"""The records of `methods` as one table, and the field's qualitative findings with a verdict for each.

Intervals are 95 %. That of an accuracy is a bootstrap over test items of the mean over seeds. A comparison is paired,
d[s, i] = method's minus reference's on seed s and item i, and takes seeds and items for two random samples, crossed:

    var(mean d) = var_s(mean_i d) / S + var_i(mean_s d) / N,    Student's t at Satterthwaite's degrees of freedom

(the two parts both hold what is left over, so the interval is rather too wide than too narrow; so few seeds also cost).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.method_cases import Case
from benchmarks.method_run import Record, bits
from benchmarks.table import Figure, grid
from transfer import evaluate

Floats = NDArray[np.float64]

FINE_TUNING, SCRATCH = "plain fine-tuning", "from scratch"
TOWARDS_START = ("l2_sp", "l1_sp", "gl_sp", "l2_sp_fisher", "gl_sp_fisher")
L2 = "regularizer.l2"


class Paired(NamedTuple):
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether what was expected to lie above 0 does."""
        return "seen" if self.low > 0 else "not seen" if self.high < 0 else "unclear"


def paired(d: Floats, level: float = 0.95) -> Paired:  # (S, N)
    """The mean of differences over seeds and items, and its interval."""
    parts = [(v.var(ddof=1) / len(v), len(v) - 1) for v in (d.mean(1), d.mean(0)) if len(v) > 1]
    total, value = sum(v for v, _ in parts), float(d.mean())
    if total == 0:
        return Paired(value, value, value)
    freedom = total**2 / sum(v**2 / n for v, n in parts)
    half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(total))
    return Paired(value, value - half, value + half)


@dataclass(frozen=True)
class Runs:
    """What all seeds of one method on one network of one case gave."""

    case: str
    row: str
    net: str
    backbone: str
    done: tuple[Record, ...]  # in the order of their seeds
    refused: str | None = None  # why none is there

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(record["seed"] for record in self.done)

    def correct(self, kind: str = "test") -> Floats | None:
        """(S, N) of 1 where the answer is right; `kind` is test, source_before or source_after."""
        found = [bits(record[kind]) for record in self.done if kind in record]
        return np.stack(found) if found else None

    @property
    def kl(self) -> Floats | None:  # (S, N)
        found = [record["source_kl"] for record in self.done if "source_kl" in record]
        return np.array(found) if found else None

    def median(self, key: str) -> float | None:
        return float(np.median([record[key] for record in self.done])) if self.done else None

    @property
    def moved(self) -> dict[str, float]:
        found = [record["moved"] for record in self.done if record.get("moved")]
        return {stage: float(np.mean([m[stage] for m in found])) for stage in (found[0] if found else ())}


def gather(records: Sequence[Record]) -> dict[tuple[str, str, str], Runs]:
    """By (case, row, net), in the order given; failed runs become a reason."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["case"], record["row"], record["net"]), []).append(record)
    found = {}
    for (case, row, net), members in groups.items():
        done = sorted((r for r in members if r["state"] == "COMPLETE"), key=lambda r: int(r["seed"]))
        bad = next((f"{r['state']}: {r['reason']}" for r in members if r["state"] != "COMPLETE"), None)
        found[case, row, net] = Runs(case, row, net, members[0]["backbone"], tuple(done), bad)
    return found


# --- the table


HEADINGS = (
    "dataset", "method", "network", "accuracy %", "95 %", "minus fine-tuning", "source task lost", "source head KL",
    "moved, first .. last stage", "s", "MiB", "seeds",
)  # fmt: skip


def method_rows(runs: Mapping[tuple[str, str, str], Runs]) -> tuple[list[Figure], str]:
    """A figure per method for the JSON, and all of them as a printed table."""
    lines: list[tuple[str, ...]] = [HEADINGS]
    figures, skipped = [], []
    for run in runs.values():
        figure = _figure(run, runs.get((run.case, FINE_TUNING, run.net)))
        figures.append(figure)
        if figure.value is None:
            skipped.append(f"{run.case}: {run.row} was not measured: {run.refused}")
        else:
            lines.append(_line(run, figure))
        if figure.value is not None and run.refused:
            skipped.append(f"{run.case}: {run.row}: of its seeds only {len(run.seeds)} ended well: {run.refused}")
    return figures, "\n".join([grid(lines), *skipped])


def _figure(run: Runs, reference: Runs | None) -> Figure:
    name = f"{run.case}: {run.row} ({run.backbone})"
    columns: dict[str, Any] = {
        "dataset": run.case, "method": run.row, "backbone": run.backbone, "seeds": list(run.seeds),
        "reason": run.refused,
    }  # fmt: skip
    right = run.correct()
    if right is None:
        return Figure(name, None, "test accuracy", columns=columns)
    interval = evaluate.interval(right.mean(0))
    columns |= {"low": round(interval.low, 5), "high": round(interval.high, 5), "n_test": right.shape[1]}
    columns |= {"seconds": run.median("seconds"), "peak_mib": run.median("peak_mib"), "distance_from_start": run.moved}
    columns["remarks"] = sorted({text for record in run.done for text in record.get("remarks", [])})
    if (d := difference(run, reference)) is not None and run.row != FINE_TUNING:
        columns["minus_fine_tuning"] = [round(v, 5) for v in paired(d)]
    before, after = run.correct("source_before"), run.correct("source_after")
    if before is not None and after is not None:
        columns["source_accuracy"] = [round(float(v.mean()), 5) for v in (before, after)]
        columns["source_task_lost"] = round(float((before - after).mean()), 5)
    if run.kl is not None:
        columns["source_head_kl"] = round(float(run.kl.mean()), 5)
    return Figure(name, float(right.mean()), "test accuracy", columns=columns)


def _line(run: Runs, figure: Figure) -> tuple[str, ...]:
    c = figure.columns
    far, moves = c.get("minus_fine_tuning"), list(run.moved.values())
    lost, kl = c.get("source_task_lost"), c.get("source_head_kl")
    return (
        run.case, run.row, run.backbone, f"{100 * (figure.value or 0):.1f}",
        f"{100 * c['low']:.1f}..{100 * c['high']:.1f}",
        "" if far is None else f"{100 * far[0]:+.1f} ({100 * far[1]:+.1f}..{100 * far[2]:+.1f})",
        "" if lost is None else f"{100 * lost:.1f}", "" if kl is None else f"{kl:.3g}",
        " ".join(f"{m:.2g}" for m in moves), f"{c['seconds']:.1f}", f"{c['peak_mib']:.0f}", str(len(run.seeds)),
    )  # fmt: skip


def difference(one: Runs | None, other: Runs | None, kind: str = "test") -> Floats | None:
    """(S, N) over the seeds that both have."""
    if one is None or other is None:
        return None
    both = sorted({*one.seeds} & {*other.seeds})
    found = []
    for run in (one, other):
        values = run.kl if kind == "kl" else run.correct(kind)
        if values is None or len(values) != len(run.seeds) or not both:
            return None
        found.append(values[[run.seeds.index(seed) for seed in both]])
    return found[0] - found[1]


# --- findings


class Finding(NamedTuple):
    """`d` (S, N) lies above 0 where the finding holds."""

    claim: str
    d: Floats
    unit: str


def finding_rows(
    cases: Sequence[Case], runs: Mapping[tuple[str, str, str], Runs], depths: Mapping[str, Sequence[int]]
) -> tuple[list[Figure], str]:
    """The findings of the field with a verdict each, as figures and as a printed table."""
    figures, lines = [], [("finding", "difference", "95 %", "unit", "verdict")]
    for case in cases:
        for finding in _findings(case, runs, depths.get(case.name, ())):
            scale = 100 if finding.unit == "points" else 1
            found = Paired(*(scale * v for v in paired(finding.d)))
            claim = f"{case.name}: {finding.claim}"
            columns = {
                "finding": claim, "low": round(found.low, 4), "high": round(found.high, 4), "verdict": found.verdict,
                "n_seeds": finding.d.shape[0], "n_items": finding.d.shape[1],
            }  # fmt: skip
            figures.append(Figure(claim, found.value, finding.unit, columns=columns))
            span = f"{found.low:+.3g} .. {found.high:+.3g}"
            lines.append((claim, f"{found.value:+.3g}", span, finding.unit, found.verdict))
    return figures, grid(lines)


def _findings(
    case: Case, runs: Mapping[tuple[str, str, str], Runs], depths: Sequence[int]
) -> Iterator[Finding]:  # fmt: skip
    def minus(one: str, other: str, net: str = "main", kind: str = "test") -> Floats | None:
        return difference(runs.get((case.name, one, net)), runs.get((case.name, other, net)), kind)

    alike = "a similar target" if case.similar else "a target unlike the source"
    for name in TOWARDS_START:
        if (d := minus(f"regularizer.{name}", L2)) is not None:
            yield Finding(f"{name} beats l2 on {alike}", d, "points")
    if (d := minus("regularizer.l2_sp", L2, kind="source_after")) is not None:
        yield Finding("l2_sp keeps more of the source task than l2", d, "points")
    elif (d := minus(L2, "regularizer.l2_sp", kind="kl")) is not None:
        yield Finding("l2_sp moves the source head's answers less than l2 (KL)", d, "nats")
    for name in ("l1_sp", "gl_sp"):
        if (d := minus("regularizer.l2_sp", f"regularizer.{name}")) is not None:
            yield Finding(f"{name} does not beat l2_sp", d, "points")
    yield from _by_depth(case, runs, depths)
    for _, row, net in [key for key in runs if key[0] == case.name and key[1].startswith("distillation.")]:
        if net == "student" and (d := minus(row, FINE_TUNING, net)) is not None:
            yield Finding(f"{row.partition('.')[2]} helps the smaller student", d, "points")


def _by_depth(
    case: Case, runs: Mapping[tuple[str, str, str], Runs], depths: Sequence[int]
) -> Iterator[Finding]:  # fmt: skip
    """AnB: n stages of the source, frozen, the rest drawn anew; AnB+: the same, all of it trained."""
    slopes = {}
    for kind in ("AnB", "AnB+"):
        found = [runs.get((case.name, f"{kind}, n = {n}", "main")) for n in depths]
        seeds = sorted(set.intersection(*({*run.seeds} if run else set() for run in found))) if found else []
        if len(depths) > 1 and seeds:
            right = np.stack([r.correct()[[r.seeds.index(s) for s in seeds]] for r in found if r])  # type: ignore[index]
            slopes[kind] = slope(np.array(depths, float), right)
    if "AnB" in slopes:
        yield Finding("AnB falls with depth (points lost per stage)", -slopes["AnB"], "points")
    if "AnB+" in slopes:
        yield Finding("AnB+ does not fall with depth (points won per stage)", slopes["AnB+"], "points")
    if len(slopes) == 2:
        yield Finding("AnB falls faster than AnB+ (points per stage)", slopes["AnB+"] - slopes["AnB"], "points")


def slope(x: Floats, y: Floats) -> Floats:  # (K,), (K, ...) -> (...)
    """Of the straight line through y at x, by least squares."""
    centred = x - x.mean()
    found: Floats = np.tensordot(centred, y, axes=1) / (centred**2).sum()
    return found
