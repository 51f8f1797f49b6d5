"""Curves on one grid of budget shares, so that trials with other epochs, steps or folds can be compared."""

import math
from collections.abc import Iterable

from domain.rungs import GRID


def on_grid(curve: Iterable[tuple[float, float]]) -> dict[int, float]:
    """(share, value) pairs -> {step k: the latest value known at share k / GRID}, up to the last share reported."""
    points = sorted((share, value) for share, value in curve if math.isfinite(value))
    if not points:
        return {}
    values: dict[int, float] = {}
    position = 0
    for step in range(1, math.floor(points[-1][0] * GRID + 1e-9) + 1):
        while position + 1 < len(points) and points[position + 1][0] <= step / GRID + 1e-9:
            position += 1
        if points[position][0] <= step / GRID + 1e-9:
            values[step] = points[position][1]
    return values
