"""`python -m benchmarks [names…]` runs the measurements named, or all, and prints one table.

Some take arguments of their own, see the head of their file: `python -m benchmarks methods --quick | --real` compares
every method, `record` fills the table of fine-tuning results, `optimizers` replays every sampler on it, `searches` puts
a whole search beside what people would use instead.
"""

import sys
from importlib import import_module

from benchmarks.table import Figure, machine, publish, render

NAMES = (
    "startup", "submit", "upload", "trainer", "tutorial", "cached", "gap", "scale", "job", "job_in_full", "costs",
    "ask",
)  # fmt: skip
WITH_ARGUMENTS = ("methods", "record", "optimizers", "searches")
# Run when named: they settle a decision, not a speed, or want gigabytes of disk or an accelerator.
ASKED = ("ahead", "budget", "gpu", "larger", "small_val", "trust", "warm")


def main(names: list[str]) -> int:
    if names and names[0] in WITH_ARGUMENTS:
        return int(import_module(f"benchmarks.{names[0]}").main(names[1:]))
    unknown = sorted(set(names) - {*NAMES, *ASKED})
    if unknown:
        print(
            f"there is no benchmark {', '.join(unknown)}; there are {', '.join([*NAMES, *WITH_ARGUMENTS, *ASKED])}",
            file=sys.stderr,
        )
        return 2
    found: dict[str, list[Figure]] = {}
    for name in names or NAMES:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        facts = machine()
        found[name] = import_module(f"benchmarks.{name}").measure()
        publish(name, found[name], facts)
    if len(found) > 1:
        print("\n" + render(dict(found)))
    return 0 if all(figure.holds is not False for rows in found.values() for figure in rows) else 1


sys.exit(main(sys.argv[1:]))
