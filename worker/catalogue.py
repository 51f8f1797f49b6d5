"""`python -m worker.catalogue`: import every part, backbone and task, and write what they say into the catalogue.

With `--check` nothing is written: the exit status is 1 if the committed file says something else.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

import domain
from domain.catalogue import Catalogue, TaskFacts
from models.facts import backbone_facts
from transfer import tasks
from transfer.parts import every_part
from worker.generated import write_or_check

FILE = Path(domain.__file__).with_name("catalogue.json")


def build_catalogue() -> Catalogue:
    """The catalogue as the code says it now."""
    return Catalogue(parts=tuple(every_part()), backbones=tuple(backbone_facts()), tasks=tuple(_tasks()))


def render(catalogue: Catalogue) -> str:
    return catalogue.model_dump_json(indent=1) + "\n"


def _tasks() -> list[TaskFacts]:
    found = []
    for name in sorted(m.name for m in pkgutil.iter_modules(tasks.__path__)):
        module = importlib.import_module(f"{tasks.__name__}.{name}")
        summary = (module.__doc__ or "").strip().partition("\n")[0]
        found.append(
            TaskFacts(name=name, summary=summary, objectives=module.OBJECTIVES, space=module.SPACE, legal=module.LEGAL)
        )
    return found


def main() -> int:
    return write_or_check(FILE, render(build_catalogue()), program="worker.catalogue", description=__doc__)


if __name__ == "__main__":
    sys.exit(main())
