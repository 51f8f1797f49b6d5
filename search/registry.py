"""Samplers and pruners by name: the file is the registration."""

import importlib
import pkgutil
from types import ModuleType

from domain.errors import Invalid


def names(kind: str) -> list[str]:
    """The registered names of `samplers` or `pruners`, in alphabetical order."""
    package = importlib.import_module(f"search.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def load(kind: str, name: str) -> ModuleType:
    legal = names(kind)
    if name not in legal:
        noun = kind.removesuffix("s")
        raise Invalid(f"unknown_{noun}", f"there is no {noun} {name!r}; there are {', '.join(legal)}", legal=legal)
    return importlib.import_module(f"search.{kind}.{name}")
