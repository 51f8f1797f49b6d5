"""AutoGluon's multimodal predictor from our weights: `autogluon_fit.py <task.json>`.

At its own defaults but for their size: twenty epochs of batches of 128 are twenty steps where 30 pictures train. It has
batches of 8 and a hundred epochs, or as many as the budget allows.

A model of its own weights must be a local folder; a name of timm's would go to a hub. torchvision and timm build this
network in the same order, so that its tensors are renamed by their place.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import pandas as pd
import timm
import torch
from autogluon.multimodal import MultiModalPredictor
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import mobilenet_v2

from benchmarks.rivals.loop import WIDTHS
from benchmarks.rivals.task import Incumbent, Logits, Task, leave, read_task, scores

ARCHITECTURES = {"mobilenet_v2": "mobilenetv2_100", "mobilenet_v2_w035": "mobilenetv2_035"}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def main(task: Task) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="autogluon-") as home:
        write_model(task, Path(home) / "model")
        predictor = MultiModalPredictor(
            label="label", problem_type="binary" if len(task.classes) == 2 else "multiclass", eval_metric="log_loss",
            path=f"{home}/predictor", verbosity=0,
        )  # fmt: skip
        options: dict[str, Any] = {
            "model.names": ["timm_image"], "model.timm_image.checkpoint_name": f"{home}/model", "env.num_gpus": 0,
            "env.num_workers": 0, "env.num_workers_inference": 0, "env.precision": "32",
            "env.batch_size": 8, "optim.max_epochs": 100, "optim.patience": 100, "optim.val_check_interval": 1.0,
        }  # fmt: skip
        train, val, test = (pictures(task, split) for split in ("train", "val", "test"))
        predictor.fit(
            train, tuning_data=val, time_limit=max(1.0, task.left_s()), hyperparameters=options, seed=task.seed
        )
        searched_s = task.elapsed_s()
        on_val = scores(logits(predictor, val, task.classes), labels(val, task.classes))
        # While it trained there was a value, but no predictions on test: those are of what it ends with.
        found = [Incumbent(t, {"log_loss": loss}, None) for t, loss in told(Path(home), task)]
        found.append(Incumbent(searched_s, on_val, logits(predictor, test, task.classes)))
        leave(task, found, searched_s=searched_s)


def write_model(task: Task, folder: Path) -> None:
    folder.mkdir()
    name = ARCHITECTURES[task.backbone]
    net = timm.create_model(name, num_classes=0)
    weights = load_file(task.weights)
    order = [key for key in mobilenet_v2(width_mult=WIDTHS[task.backbone]).state_dict() if key.startswith("features")]
    own, ordered = net.state_dict(), [weights[key] for key in order]
    if [t.shape for t in own.values()] != [t.shape for t in ordered]:
        raise ValueError(f"{name} of timm is built in another order than torchvision's")
    torch.save(dict(zip(own, ordered, strict=True)), folder / "pytorch_model.bin")
    facts = {"input_size": [3, task.resolution, task.resolution], **IMAGENET, "interpolation": "bilinear"}
    config = {"architecture": name, "num_features": net.num_features, "pretrained_cfg": facts}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def pictures(task: Task, split: str) -> pd.DataFrame:
    """In the order of the classes' folders, which is that of `data.npz`."""
    files = [
        (str(file), name) for name in task.classes
        for file in sorted((Path(task.folder) / "pictures" / split / name).iterdir())
    ]  # fmt: skip
    return pd.DataFrame(files, columns=["image", "label"])


def labels(table: pd.DataFrame, classes: tuple[str, ...]) -> Any:
    return np.array([classes.index(name) for name in table["label"]])


def logits(predictor: Any, table: pd.DataFrame, classes: tuple[str, ...]) -> Logits:
    said = predictor.predict_proba(table.drop(columns="label"), as_pandas=True)
    found: Logits = np.log(np.clip(said[list(classes)].to_numpy(np.float64), 1e-12, 1))
    return found


def told(home: Path, task: Task) -> list[tuple[float, float]]:
    """(time, log-loss on val) while it trained, as its own log tells."""
    found = []
    for file in home.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        if "val_log_loss" in events.Tags()["scalars"]:
            found += [(e.wall_time - task.began, float(e.value)) for e in events.Scalars("val_log_loss")]
    return sorted(found)


if __name__ == "__main__":
    main(read_task(sys.argv[1]))
