"""What the ranking of sources is good for: which one the anchors start from, and which ones are not worth a trial."""

import math
from typing import Any

from domain.job import JobSpec
from domain.space import Choice, Dimension

KEPT = 2  # no score is right everywhere: so many of the best-ranked sources always get their trials
ERRORS = 2.0  # standard errors of the difference by which a probe must be behind
PROBE = "ridge"  # the score that is an accuracy
A_FEW = 8  # default trials that the time has to pay for, of the source that leads


def screened(spec: JobSpec, estimate: dict[str, Any]) -> tuple[JobSpec, list[str]]:
    """The job with its sources in the order of their ranking and without the hopeless ones, and what was decided.

    The anchors and all defaults are those of the first source. That is the best-ranked one, unless the budget of time
    cannot pay for it: then the best-ranked that it can pay for. A source is hopeless if it ranks behind the first
    `KEPT`, its linear probe is behind the best-ranked source's by more than `ERRORS` standard errors, and every other
    score that counts puts it behind too. What the job chose itself, or ranks nothing, stays as it is.
    """
    ranking: list[dict[str, Any]] = estimate.get("ranking") or []
    choice = next((d for d in spec.space.dimensions if d.path == "source"), None)
    if not spec.screen or "source" in spec.chosen or choice is None or len(ranking) < 2:
        return spec, []
    best = ranking[0]
    told = []
    first = _first(spec, estimate, [entry["source"] for entry in ranking[:KEPT]])
    because = "its features tell the classes apart best, by all scores together"
    if first != best["source"]:
        because = f"{best['source']} ranks higher, but the budget pays for too few trials of it"
    if first != spec.sources[0].ref:
        told.append(f"the anchors and all defaults start from {first}: {because}")
    dropped = []
    for entry in ranking[KEPT:]:
        if _hopeless(entry, best, estimate.get("ranked_by") or []) and entry["source"] != first:
            dropped.append(entry["source"])
            told.append(
                f"{entry['source']} is left out: a linear probe on it gets {entry['scores'][PROBE]:.0%} right, on "
                f"{best['source']} {best['scores'][PROBE]:.0%}, and it is behind in every other score"
            )
    return _in_order(spec, choice, [first, *(e["source"] for e in ranking)], dropped), told


def _first(spec: JobSpec, estimate: dict[str, Any], best: list[str]) -> str:
    """Of the best-ranked sources, the first whose default trial the time pays for a few times, else the fastest."""
    seconds = {s["source"]: float(s["s_per_trial"]) for s in estimate.get("sources") or ()}
    times = [t for t in (spec.budget.wall_s, spec.budget.device_s) if t is not None]
    if not times or not all(ref in seconds for ref in best):
        return best[0]
    affordable = [ref for ref in best if seconds[ref] <= min(times) / A_FEW]
    return affordable[0] if affordable else min(best, key=lambda ref: seconds[ref])


def _hopeless(entry: dict[str, Any], best: dict[str, Any], counted: list[str]) -> bool:
    own, others = entry["scores"], best["scores"]
    if PROBE not in own or PROBE not in others:
        return False
    variance = sum(s[PROBE] * (1 - s[PROBE]) / e["n_items"] for s, e in ((own, entry), (others, best)))
    behind = others[PROBE] - own[PROBE] > ERRORS * math.sqrt(variance)
    return behind and all(own[name] < others[name] for name in counted)


def _in_order(spec: JobSpec, choice: Dimension, order: list[str], dropped: list[str]) -> JobSpec:
    """The job with its sources in this order, after them those that were not ranked; `dropped` ones are not searched.

    They stay among its sources: what the job named is kept from being deleted.
    """
    places = {ref: order.index(ref) for ref in order}
    sources = tuple(sorted(spec.sources, key=lambda s: places.get(s.ref, len(order))))
    options = tuple(s.ref for s in sources if s.ref not in dropped)
    changed = choice.model_copy(update={"range": Choice(options=options, default=options[0])})
    dimensions = tuple(changed if d is choice else d for d in spec.space.dimensions)
    space = spec.space.model_copy(update={"dimensions": dimensions})
    return spec.model_copy(update={"sources": sources, "space": space})
