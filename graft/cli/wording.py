"""Numbers, times and recipes as people read them."""

import math
from collections.abc import Sequence
from typing import Any

from graft.answers import Interval, Job, Progress

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


def quantity(name: str, value: float | None) -> str:
    """A number in the unit that its objective has: `12.3 ms`, `44.7 MB`, `0.9312`."""
    if value is None:
        return "-"
    if name == "size_bytes":
        return size(value)
    return f"{value:.3g} ms" if name.endswith("_ms") else number(value)


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


def trial_count(progress: Progress) -> str:
    """`3/20`, or `3` where only time limits the search."""
    return f"{progress.trials_done}/{progress.trials_total}" if progress.trials_total else str(progress.trials_done)


def too_long(job: Job) -> str | None:
    """What to do where one trial at its defaults takes more than the time of the budget; None where it fits."""
    budget = job.spec.get("budget")
    wall_s = budget.get("wall_s") if isinstance(budget, dict) else None
    s_per_trial = (job.estimate or {}).get("s_per_trial")
    if not wall_s or not s_per_trial or s_per_trial <= wall_s:
        return None
    return (
        f"that is more than the budget of {duration(wall_s)}: expect little beyond the linear probe. "
        "Give more time, or start again with less work per trial (--folds 1, --fix steps=50..200, "
        "--fix data.resolution=128)"
    )


def estimate_line(estimate: dict[str, Any]) -> str:
    """`a trial takes about 12 s on cpu, the whole job about 4 min 00 s; 812.0 MB of memory, 1.2 GB of disk`"""
    line = f"a trial takes about {duration(estimate.get('s_per_trial'))} on {estimate.get('device', '?')}"
    if estimate.get("job_s") is not None:
        line += f", the whole job about {duration(estimate['job_s'])}"
    needs = {"memory": estimate.get("memory_bytes"), "disk": estimate.get("disk_bytes")}
    told = ", ".join(f"{size(n_bytes)} of {what}" for what, n_bytes in needs.items() if n_bytes)
    return f"{line}; {told}" if told else line


STOPPED_BY = {
    "time": "its time was spent",
    "device_time": "its time of training was spent",
    "target": "the target was reached",
    "patience": "no trial had been better for as many trials as its patience allowed",
    "user": "it was told to",
    "failures": "its trials failed",
}


def stop_line(job: Job) -> str | None:
    """Why the search ended; None where it simply ran all of its trials."""
    why = STOPPED_BY.get(job.stopped_by or "")
    return f"The search ended because {why}." if why else None


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
    schedule = recipe.get("schedule")
    if isinstance(schedule, dict) and schedule.get("name") == "linear_probe":
        return " ".join(word for word in words if word)  # solved in closed form: no learning rate, no steps
    optimizer = recipe.get("optimizer")
    if isinstance(optimizer, dict) and optimizer.get("lr_head") is not None:
        words.append(f"lr {optimizer['lr_head']:.2g}")
    if recipe.get("steps"):
        words.append(f"{recipe['steps']} steps")
    return " ".join(word for word in words if word)


def ranking_lines(estimate: dict[str, Any]) -> list[str]:
    """One line per source, the most promising first: `1. torchvision:resnet18  knn 0.8120, logme 0.4120  (3 s)`."""
    lines = []
    for entry in estimate.get("ranking") or ():
        scores = {name: value for name, value in (entry.get("scores") or {}).items() if value is not None}
        told = ", ".join(f"{name} {number(value)}" for name, value in sorted(scores.items())) or "no score"
        seconds = duration(entry.get("seconds"))
        lines.append(f"{entry.get('rank', '?')}. {entry.get('source', '?')}  {told}  ({seconds})")
    return lines


def decisions(estimate: dict[str, Any]) -> list[str]:
    """What the probe decided before the search: which source leads, which ones are left out, what is tried first."""
    found = [*(estimate.get("screening") or ()), estimate.get("first_recipes")]
    return [str(sentence) for sentence in found if sentence]


def error_text(error: Any) -> str:
    """The sentence of an error that is a string or {"code", "detail"}."""
    if isinstance(error, dict):
        text, code = error.get("detail") or error.get("message"), error.get("code")
        return f"{text} ({code})" if text and code else str(text or code or "unknown")
    return str(error or "unknown")
