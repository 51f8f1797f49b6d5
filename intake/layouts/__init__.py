"""One file per task: how an upload says what its items and labels are, and how one item is checked.

A layout module has `find_layout(names, read, limits) -> Layout`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, cast

from domain.dataset import Finding, Split
from domain.errors import Invalid
from intake.limits import Limits


class Candidate(NamedTuple):
    """A file that should become an item, if it turns out to be one."""

    path: str
    label: str
    split: Split | None


class Layout(NamedTuple):
    name: str
    candidates: list[Candidate]
    findings: list[Finding]  # one for every file that is no candidate


class LayoutModule(Protocol):
    def find_layout(self, names: Sequence[str], read: Callable[[str], bytes], limits: Limits) -> Layout: ...


def tasks() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(task: str) -> LayoutModule:
    if task not in tasks():
        raise Invalid("unknown_task", f"there is no task {task!r}; there are {', '.join(tasks())}", legal=tasks())
    return cast(LayoutModule, importlib.import_module(f"{__name__}.{task}"))
