"""Numbers, times and recipes as people read them."""

import math
from collections.abc import Sequence
from typing import Any

from graft.answers import Interval, Job

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float | None) -> str:
    """`48 s`, `3 min 05 s`, `2 h 14 min`; a dash for None."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(n_bytes: float) -> str:
    """`812 bytes`, `3.1 MB`: decimal units, as disks are sold."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{n_bytes / scale:.1f} {unit}"
    return f"{n_bytes:.0f} bytes"


def number(value: float | None) -> str:
    """Four digits behind the point, enough to tell two trials apart; a dash for None."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"


def interval(found: Interval, *, signed: bool = False) -> str:
    """`0.931 [0.905, 0.953]`, with signs for a difference."""
    form = "+.3f" if signed else ".3f"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def sparkline(values: Sequence[float], width: int = 30) -> str:
    """The last `width` values as bars; the lowest has the lowest bar."""
    shown = [v for v in values if math.isfinite(v)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high == low:
        return _BARS[len(_BARS) // 2] * len(shown)
    return "".join(_BARS[round((v - low) / (high - low) * (len(_BARS) - 1))] for v in shown)


def objective(job: Job) -> tuple[str, bool]:
    """The name of what the job ranks by, and whether more of it is better."""
    spec = job.spec.get("objective") or "accuracy"
    name = str(spec.get("name", "accuracy") if isinstance(spec, dict) else spec)
    return name, name != "log_loss"


def best_so_far(values: Sequence[float], *, more_is_better: bool) -> list[float]:
    """The running best of a sequence."""
    best: list[float] = []
    for value in values:
        best.append(value if not best else (max if more_is_better else min)(best[-1], value))
    return best


def recipe_line(recipe: dict[str, Any]) -> str:
    """The part of a recipe that tells it from its neighbours: `resnet18 l2_sp lr 0.0123`."""
    words = [str(recipe.get("backbone") or recipe.get("source") or "")]
    for slot in ("surgery", "regularizer", "feature", "distillation", "schedule", "sampling", "averaging"):
        part = recipe.get(slot)
        if isinstance(part, dict) and part.get("name"):
            words.append(str(part["name"]))
    optimizer = recipe.get("optimizer")
    if isinstance(optimizer, dict) and optimizer.get("lr_head") is not None:
        words.append(f"lr {optimizer['lr_head']:.2g}")
    if recipe.get("steps"):
        words.append(f"{recipe['steps']} steps")
    return " ".join(word for word in words if word)


def error_text(error: Any) -> str:
    """The sentence of an error that is a string or {"code", "detail"}."""
    if isinstance(error, dict):
        text, code = error.get("detail") or error.get("message"), error.get("code")
        return f"{text} ({code})" if text and code else str(text or code or "unknown")
    return str(error or "unknown")
