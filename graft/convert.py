"""`graft convert`: a .pth state dict becomes safetensors, on the user's own machine.

Reading foreign pickles is a risk even with `weights_only=True`, so a child process does it. The one file of the SDK
that imports torch.
"""

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft.errors import GraftError
from graft.serving import child_environment, command

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "model_ema", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def convert(source: Path, target: Path) -> str:
    """Write `target` from `source` in a child process; one sentence on what was written."""
    if not source.is_file():
        raise GraftError(f"{source} does not exist: give a .pth file with a state dict")
    if target.exists():
        raise GraftError(f"{target} exists already: choose another name or remove it")
    missing = [name for name in ("torch", "safetensors", "numpy") if importlib.util.find_spec(name) is None]
    if missing:
        raise GraftError(f"{' and '.join(missing)} not installed here: pip install 'graft-automl[convert]'")
    done = subprocess.run(
        command("graft.convert", str(source.absolute()), str(target.absolute())),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise GraftError(
            lines[-1] if lines else f"{source} could not be read (the reader ended with {done.returncode})"
        )
    return done.stdout.strip()


def unwrap(content: Any) -> dict[str, Any]:
    """The state dict inside what a checkpoint file holds: wrappers and prefixes taken off."""
    for _ in range(3):  # {"model": {"state_dict": …}}
        inner = (
            next((content[w] for w in WRAPPERS if isinstance(content.get(w), Mapping)), None)
            if _is_map(content)
            else None
        )
        if inner is None:
            break
        content = inner
    if not _is_map(content) or not content:
        raise GraftError("the file holds no state dict: save it with torch.save(model.state_dict(), path)")
    names = dict(content)
    for prefix in PREFIXES * 2:
        if all(isinstance(name, str) and name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def _is_map(content: Any) -> bool:
    return isinstance(content, Mapping)


def write(source: Path, target: Path) -> str:
    """Do the work, in the child."""
    import pickle  # noqa: TID251 (for the name of an error)

    import torch
    from safetensors.torch import save_file

    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(source, map_location="cpu", weights_only=True)  # noqa: TID251 (a child; tensors only)
    except pickle.UnpicklingError as error:
        raise GraftError(
            f"{source} holds Python objects besides tensors, which are never loaded: save it again with "
            "torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # a foreign file can break its reader in any way
        why = (str(error).splitlines() or [""])[0]
        raise GraftError(f"{source} is no file that torch.save wrote ({type(error).__name__}: {why})") from error
    names = unwrap(content)
    strangers = [str(n) for n, v in names.items() if not isinstance(n, str) or type(v) not in _plain(torch)]
    if strangers:
        shown = ", ".join(strangers[:3])
        raise GraftError(
            f"{source} holds {len(strangers)} entries that are no tensors ({shown}): save model.state_dict()"
        )
    odd = [n for n, v in names.items() if v.layout != torch.strided or v.is_quantized]
    if odd:
        raise GraftError(
            f"{source} holds sparse or quantized tensors ({', '.join(odd[:3])}): convert them to dense ones first"
        )
    # Clones: safetensors refuses tensors that share memory, which tied weights do.
    tensors = {name: value.detach().clone().contiguous() for name, value in names.items()}
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    n_weights = sum(value.numel() for value in tensors.values())
    return f"{target}: {len(tensors)} tensors, {n_weights:,} numbers"


def _plain(torch: Any) -> tuple[type, ...]:
    return (torch.Tensor, torch.nn.Parameter)


def main(arguments: list[str]) -> int:
    """The child: IN OUT; a refusal is one line on stderr and exit code 1."""
    try:
        sys.stdout.write(write(Path(arguments[0]), Path(arguments[1])) + "\n")
    except GraftError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
