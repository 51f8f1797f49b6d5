"""Resume points: a folder of `state.safetensors` and `state.json`, the JSON written last. Nothing is ever unpickled."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from domain.lot import LotOrder, TrialOrder
from models.weights import read_weights, save_weights

SCHEMA_VERSION = 2
TENSORS, FACTS = "state.safetensors", "state.json"
Point = tuple[dict[str, Any], dict[str, Tensor]]  # facts and tensors


def fingerprint(order: LotOrder, trial: TrialOrder) -> str:
    """What a resume point is only good for: this recipe, these folds, this objective, this precision."""
    described = [trial.recipe.model_dump(mode="json"), order.n_folds, order.objective.name, order.precision]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def write(folder: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """A resume point in `folder`, whole once its JSON is there."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(tensors, folder / TENSORS)
    partial = folder / f".{FACTS}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"schema_version": SCHEMA_VERSION, **facts}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FACTS)


def read(folder: Path, wanted: str) -> Point | None:
    """The resume point in `folder`; None if there is none, or one of another fingerprint or version."""
    if not (folder / FACTS).is_file():
        return None
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text("utf-8"))
    if facts.get("schema_version") != SCHEMA_VERSION or facts.get("fingerprint") != wanted:
        return None
    tensors, _ = read_weights(folder / TENSORS)
    return facts, tensors


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose key begins with `prefix/`, without it."""
    return {key[len(prefix) + 1 :]: t for key, t in tensors.items() if key.startswith(prefix + "/")}
