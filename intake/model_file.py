"""Is this file a safetensors file, and nothing else? Read by its header alone; no tensor is loaded."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from domain.errors import Invalid
from intake.limits import Limits
from intake.names import escape

_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_MAX_RANK = 8


def check_safetensors(path: Path, limits: Limits | None = None) -> dict[str, dict[str, Any]]:
    """Tensor name -> {"dtype", "shape"}; Invalid("model_format_unsafe") unless every byte is accounted for."""
    limits = limits or Limits()
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        _refuse_pickle(head)
        n_header = int.from_bytes(head, "little")
        if len(head) < 8 or n_header > min(limits.max_model_header_bytes, size - 8):
            _refuse("its header does not fit into it")
        header = _parse(file.read(n_header))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("its metadata is not text")
    if not 0 < len(header) <= limits.max_tensors:
        _refuse(f"it holds {len(header)} tensors")
    spans = sorted(_check_entry(name, entry) for name, entry in header.items())
    end = 0
    for start, stop in spans:
        if start != end:
            _refuse("its tensors overlap or leave gaps")
        end = stop
    if end != size - 8 - n_header:
        _refuse("its tensors do not fill it")
    return {name: {"dtype": entry["dtype"], "shape": entry["shape"]} for name, entry in header.items()}


def _refuse_pickle(head: bytes) -> None:
    if head.startswith((b"PK\3\4", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        _refuse("it is a pickle as torch.save writes it, which could run code; save it with safetensors instead")


def _parse(data: bytes) -> dict[str, Any]:
    if not data.startswith(b"{"):
        _refuse("its header is not JSON")
    try:
        return dict(json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        _refuse("its header is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        _refuse("its header names something twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _check_entry(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes stand, once its name, type, shape and size agree."""
    shown = escape(name[:100])
    if not name.isprintable() or len(name) > 500:
        _refuse(f"it names a tensor {shown!r}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(f"{shown!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        _refuse(f"{shown!r} has a type that is not read")
    if not (_whole(shape) and len(shape) <= _MAX_RANK and _whole(offsets) and len(offsets) == 2):
        _refuse(f"{shown!r} has no proper shape or offsets")
    start, stop = offsets
    if math.prod(shape) * _ITEM_BYTES[dtype] != stop - start:
        _refuse(f"{shown!r} does not have the size of its shape")
    return start, stop


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _refuse(why: str) -> NoReturn:
    raise Invalid("model_format_unsafe", f"this is not a safetensors file that can be read safely: {why}")
