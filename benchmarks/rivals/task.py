"""What every contender is given and what it leaves. Knows the standard library, numpy and torch alone: contenders run
in environments of their own."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Task:
    """One search. `folder` holds `data.npz` (uint8 pictures and labels of each split), `pictures/<split>/<class>/`,
    `pictures.zip` of the same and `pack/`; `out` is the contender's own."""

    folder: str
    out: str
    weights: str  # safetensors of torchvision's names
    backbone: str
    classes: tuple[str, ...]
    resolution: int
    budget_s: float
    seed: int
    began: float  # by the clock of the machine, when the contender's process was started

    def elapsed_s(self) -> float:
        return time.time() - self.began

    def left_s(self) -> float:
        return self.budget_s - self.elapsed_s()

    def data(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pictures (N, R, R, 3) and labels (N,)."""
        with np.load(Path(self.folder) / "data.npz") as arrays:
            return arrays[f"{split}_pixels"], arrays[f"{split}_labels"]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), "utf-8")


def read_task(path: str) -> Task:
    given = json.loads(Path(path).read_text("utf-8"))
    return Task(**given | {"classes": tuple(given["classes"])})


@dataclass(frozen=True)
class Incumbent:
    """The best so far on val, from a time on. `test` are its logits, worked out once the search is over; None where
    only its value is known."""

    t: float
    val: dict[str, float]
    test: Logits | None


def scores(logits: Logits, labels: NDArray[np.integer[Any]]) -> dict[str, float]:
    """Accuracy and mean -log p(y)."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return {
        "accuracy": float((logits.argmax(1) == labels).mean()),
        "log_loss": float(-log_p[np.arange(len(labels)), labels].mean()),
    }


def right(logits: Logits, labels: NDArray[np.integer[Any]]) -> str:
    """1 where the answer is right, item by item."""
    return "".join("1" if hit else "0" for hit in logits.argmax(1) == labels)


def leave(
    task: Task, found: list[Incumbent], *, searched_s: float, others: dict[str, str] | None = None, **facts: Any
) -> None:
    """The contender's account. `searched_s` is when the last thing was ready that a user waits for; `others`: right
    answers on test of what else was trained, by name."""
    labels, lines = task.data("test")[1], []
    for one in found:
        line: dict[str, Any] = {"t": one.t, "val": one.val}
        if one.test is not None:
            line |= {"test": scores(one.test, labels), "right": right(one.test, labels)}
        lines.append(line)
    page = {"incumbents": lines, "searched_s": searched_s, "others": others or {}, "facts": facts}
    (Path(task.out) / "result.json").write_text(json.dumps(page), "utf-8")
