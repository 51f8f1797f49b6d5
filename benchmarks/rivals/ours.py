"""Predictions of networks that Graft trained, on the test pictures of a task."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from benchmarks.rivals.task import Logits, Task
from domain.recipe import Recipe
from intake.packs import open_pack
from transfer.checkpoint import open_checkpoint, preprocessing_at
from transfer.evaluate import PixelNetwork


def on_test(task: Task, recipe: Recipe, weights: Path) -> Logits:
    """Of a checkpoint."""
    preprocessing = preprocessing_at(recipe, open_pack(Path(task.folder) / "pack"))
    opened: Any = open_checkpoint(recipe, weights, len(task.classes))
    network, pixels = PixelNetwork(opened, preprocessing).eval(), torch.from_numpy(task.data("test")[0])
    with torch.inference_mode():
        return np.concatenate([network(chunk).numpy() for chunk in pixels.split(64)])


def bundle_on_test(task: Task, bundle: Path) -> Logits:
    """Of an unpacked bundle's ONNX network, as whoever downloads it would ask it."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = task.data("test")[0]
    chunks = [pixels[start : start + 64] for start in range(0, len(pixels), 64)]
    return np.concatenate([session.run(["logits"], {"pixels": chunk})[0] for chunk in chunks])
