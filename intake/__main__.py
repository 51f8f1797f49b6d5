"""`python -m intake prepare|pack …`: the same functions in a process of their own, under limits.

Prints one line of JSON, {"ok": {…}} or {"error": {"code", "detail", "facts"}}, and exits with 0 or 1. What no one
expected prints nothing there: a traceback on stderr, or a signal. Start it with OPENBLAS_NUM_THREADS=1: the buffers of
idle BLAS threads count against --max-memory-bytes.
"""

import argparse
import errno
import json
import resource
import sys
from pathlib import Path
from typing import Any

from domain.errors import GraftError, Invalid
from intake.limits import Limits
from intake.packs import open_pack, pack
from intake.prepare import prepare

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_N_FINDINGS = 100  # in the printed line; the manifest has them all


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    _limit(resource.RLIMIT_AS, args.max_memory_bytes)
    _limit(resource.RLIMIT_CPU, args.max_cpu_s)
    _limit(resource.RLIMIT_FSIZE, args.max_file_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    try:
        answer: dict[str, Any] = {"ok": args.run(args)}
    except GraftError as error:
        answer = {"error": {"code": error.code, "detail": error.detail, "facts": error.facts}}
    except MemoryError:
        answer = {"error": {"code": "out_of_memory", "detail": "needs more memory than allowed", "facts": {}}}
    except OSError as error:
        if error.errno not in _FULL:
            raise
        answer = {"error": {"code": "insufficient_storage", "detail": "the disk or the limit is full", "facts": {}}}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0 if "ok" in answer else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m intake")
    for flag in ("--max-memory-bytes", "--max-cpu-s", "--max-file-bytes"):
        parser.add_argument(flag, type=int)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prepare", help="archive -> prepared zip")
    one.add_argument("archive", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--task", default="classification")
    one.add_argument("--options", default="{}", help="how to divide it, as JSON")
    one.add_argument("--limits", default="{}", help="fields of intake.limits.Limits, as JSON")
    one.set_defaults(run=_prepare)
    two = commands.add_parser("pack", help="prepared zip -> arrays at one resolution")
    two.add_argument("items", type=Path)
    two.add_argument("folder", type=Path)
    two.add_argument("--resize", type=int, required=True)
    two.add_argument("--crop", type=int, required=True)
    two.add_argument("--interpolation", required=True)
    two.add_argument("--threads", type=int)
    two.set_defaults(run=_pack)
    return parser


def _prepare(args: argparse.Namespace) -> dict[str, Any]:
    limits = Limits(**_object(args.limits, "limits"))
    manifest = prepare(args.archive, args.out, task=args.task, options=_object(args.options, "options"), limits=limits)
    answer = manifest.model_dump(mode="json", exclude={"items"})
    return answer | {"findings": answer["findings"][:_N_FINDINGS]}


def _pack(args: argparse.Namespace) -> dict[str, Any]:
    pack(
        args.items, args.folder, resize=args.resize, crop=args.crop, interpolation=args.interpolation,
        n_threads=args.threads,
    )  # fmt: skip
    built = open_pack(args.folder)
    return {"n": len(built.labels), "canvas": built.canvas, "crop": built.crop, "content_hash": built.content_hash}


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Invalid("bad_options", f"{what} are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Invalid("bad_options", f"{what} are not a JSON object")
    return value


def _limit(what: int, most: int | None) -> None:
    if most is not None:
        resource.setrlimit(what, (most, most))


if __name__ == "__main__":
    sys.exit(main())
