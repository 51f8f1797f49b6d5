"""Scores of a source without training: how well its features, or its own head, already tell the target's classes.

A file of this folder is a score, its name is the registered one, and it says

    score(features, labels, source_probabilities) -> float      larger is better

features (n, D) float64, of evaluation pixels; labels (n,), whole numbers; source_probabilities (n, Cs), what the
source's own head says, or None where there is none: scores that cannot do without say NEEDS = ("source_head",).
No score depends on the order of the items.
"""

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from domain.errors import Invalid


@cache
def names() -> tuple[str, ...]:
    """The registered scores."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def load(name: str) -> ModuleType:
    """The file that is registered as `name`."""
    if name not in names():
        legal = ", ".join(names())
        raise Invalid("unknown_score", f"there is no score {name!r}; there are {legal}", legal=list(names()))
    return importlib.import_module(f"transfer.scores.{name}")


def needs(name: str) -> tuple[str, ...]:
    """What a score cannot be worked out without."""
    return tuple(getattr(load(name), "NEEDS", ()))
