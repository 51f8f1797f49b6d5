"""Files that are written from the code and committed: written anew, or checked for being stale."""

import argparse
import difflib
import sys
from pathlib import Path

SHOWN = 40  # lines of difference


def write_or_check(file: Path, text: str, *, program: str, description: str | None) -> int:
    """Carry out a command that writes `file`; with `--check` it writes nothing and fails if the file is stale."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the file is stale")
    if not parser.parse_args().check:
        file.write_text(text, "utf-8")
        return 0
    written = file.read_text("utf-8") if file.exists() else ""
    if written == text:
        return 0
    changes = difflib.unified_diff(written.splitlines(), text.splitlines(), "committed", "now", lineterm="", n=1)
    named = "/".join(file.parts[-2:])
    sys.stderr.write(f"{named} is stale; run `make catalogue`\n" + "\n".join(list(changes)[:SHOWN]) + "\n")
    return 1
