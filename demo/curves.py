"""Learning curves of the demo. Transfer may improve start, slope and asymptote (Torrey & Shavlik 2009)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from graft import Report

FLAT = 0.02  # one of the 50 labelled scans: a smaller difference is none


@dataclass(frozen=True)
class Curve:
    """Accuracy on val after so many steps, the mean of the folds that were measured there."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, name: str, reports: Sequence[Report]) -> Self:
        by_step: dict[int, list[float]] = defaultdict(list)
        for report in reports:
            if "val/accuracy" in report.terms:
                by_step[report.step].append(report.terms["val/accuracy"])
        n_folds = max(map(len, by_step.values()), default=0)
        whole = {step: sum(v) / len(v) for step, v in sorted(by_step.items()) if len(v) == n_folds}
        return cls(name, tuple(whole), tuple(whole.values()))

    @property
    def start(self) -> float:
        """The first accuracy that was measured."""
        return self.values[0]

    @property
    def asymptote(self) -> float:
        """The mean of the last quarter."""
        last = self.values[-max(1, len(self.values) // 4) :]
        return sum(last) / len(last)

    @property
    def slope(self) -> float:
        """Accuracy gained per step on the way to nine tenths of the whole rise."""
        rise = self.asymptote - self.start
        if rise <= 0:
            return 0.0
        there = next((i for i, v in enumerate(self.values) if v >= self.start + 0.9 * rise), len(self.values) - 1)
        return (self.values[there] - self.start) / max(1, self.steps[there] - self.steps[0])


def sentence(curves: Sequence[Curve]) -> str:
    """Which of the three appeared when the same default recipe starts from the source instead of from nothing."""
    named = {curve.name: curve for curve in curves if curve.steps}
    scratch, transfer = named.get("from scratch, default"), named.get("transfer, plain fine-tuning")
    if scratch is None or transfer is None:
        return "No pair of curves to compare."
    told = [
        _told("start", transfer.start - scratch.start, FLAT, f"{scratch.start:.2f} -> {transfer.start:.2f}"),
        _told(
            "slope", transfer.slope - scratch.slope, 1e-4,
            f"{100 * scratch.slope:.2f} -> {100 * transfer.slope:.2f} per 100 steps",
        ),
        _told(
            "asymptote", transfer.asymptote - scratch.asymptote, FLAT,
            f"{scratch.asymptote:.2f} -> {transfer.asymptote:.2f}",
        ),
    ]  # fmt: skip
    return "Learning curves on val, from scratch -> by transfer: " + "; ".join(told) + "."


def _told(what: str, difference: float, flat: float, numbers: str) -> str:
    if difference > flat:
        return f"a higher {what} appeared ({numbers})"
    return f"a higher {what} did not appear ({numbers})"


def draw(curves: Sequence[Curve], path: Path, caption: str) -> Path:
    """The curves as a picture; scratch dashed, transfer solid."""
    import textwrap

    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for curve in curves:
        style = "--" if "scratch" in curve.name else "-"
        colour = "tab:grey" if "scratch" in curve.name else "tab:blue"
        width = 2.0 if "searched" in curve.name else 1.2
        alpha = 1.0 if "searched" in curve.name else 0.7
        if len(curve.steps) == 1:  # solved in closed form: no steps to draw along
            axes.axhline(curve.values[0], linestyle=":", color=colour, linewidth=width, label=f"{curve.name} (probe)")
        elif curve.steps:
            axes.plot(curve.steps, curve.values, style, color=colour, linewidth=width, alpha=alpha, label=curve.name)
    axes.set(xlabel="optimizer steps", ylabel="accuracy on val, mean of folds", ylim=(None, 1.02))
    axes.set_title("Digits 5-9 with 10 labelled scans each")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.supxlabel("\n".join(textwrap.wrap(caption, 95)), fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
