"""What a measurement says: rows of figures, printed as a table and kept as JSON beside the facts of the machine."""

import json
import operator
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent / "out"
SENSES: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}
PACKAGES = ("torch", "torchvision", "numpy", "fastapi", "uvicorn", "sqlalchemy", "celery", "optuna")


@dataclass(frozen=True)
class Figure:
    """One number. `aim` is a bound in the figure's own unit, with its sense: ("<=", 50.0), (">=", 0.95) or (">", 0.0).

    `bound` is the best that the machine allows, in the same unit. `columns` are what else is known of the figure: kept
    in the JSON beside the other fields, not printed.
    """

    figure: str
    value: float | None  # None: could not be measured
    unit: str
    aim: tuple[str, float] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    bound: float | None = None

    @property
    def reached(self) -> float | None:
        """The share of the bound: of a rate or a ratio the more the better, of a time the less."""
        if not self.value or not self.bound:
            return None
        is_rate = self.unit == "ratio" or "/s" in self.unit or "per" in self.unit
        return self.value / self.bound if is_rate else self.bound / self.value

    @property
    def holds(self) -> bool | None:
        if self.aim is None or self.value is None:
            return None
        sense, bound = self.aim
        return SENSES[sense](self.value, bound)

    def row(self) -> dict[str, Any]:
        aim = None if self.aim is None else f"{self.aim[0]} {self.aim[1]:g}"
        value = None if self.value is None else float(f"{self.value:.5g}")
        row = {"figure": self.figure, "value": value, "unit": self.unit, "aim": aim, "holds": self.holds}
        if self.bound is not None:
            row |= {"bound": float(f"{self.bound:.5g}"), "reached": float(f"{self.reached or 0:.3g}")}
        return row | dict(self.columns)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated."""
    return float(np.quantile(np.asarray(values, dtype=float), share))


def lower_bound(values: Sequence[float], *, level: float = 0.95, seed: int = 0, n_resamples: int = 4000) -> float:
    """A one-sided lower bound of the median, by bootstrap over the values."""
    sample = np.asarray(values, dtype=float)
    if sample.size < 2:
        raise ValueError("a bound needs at least two values")
    picks = np.random.default_rng(seed).integers(0, sample.size, size=(n_resamples, sample.size))
    return float(np.quantile(np.median(sample[picks], axis=1), 1 - level))


def machine() -> dict[str, Any]:
    """Where the numbers come from, and how busy it was."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "n_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def publish(name: str, figures: Sequence[Figure], facts: dict[str, Any], *, shown: str | None = None) -> None:
    """Print the figures of one measurement and keep them. `facts` were taken by `machine()` before it began.

    `shown` is what is printed where the measurement has a table of its own.
    """
    OUT.mkdir(exist_ok=True)
    page = {"machine": facts, "rows": [figure.row() for figure in figures]}
    (OUT / f"{name}.json").write_text(json.dumps(page, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(render({name: figures}) if shown is None else shown, flush=True)


def render(figures: dict[str, Sequence[Figure]]) -> str:
    """One table of every measurement given, as text; what the machine allows is told where it is known."""
    lines = [["measurement", "figure", "value", "unit", "aim", "holds", "bound", "reached"]]
    for name, rows in figures.items():
        for row in (figure.row() for figure in rows):
            holds = {True: "yes", False: "NO", None: ""}[row["holds"]]
            value = "-" if row["value"] is None else f"{row['value']:g}"
            bound = [f"{row['bound']:g}", f"{row['reached']:.1%}"] if "bound" in row else ["", ""]
            lines.append([name, row["figure"], value, row["unit"], row["aim"] or "", holds, *bound])
    bounded = any(line[-1] for line in lines[1:])
    return grid(lines if bounded else [line[:-2] for line in lines])


def grid(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells under each other, a rule below the first."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "  ".join("-" * width for width in widths), *text[1:]])


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
