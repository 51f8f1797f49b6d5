"""Plain Optuna, without pruning, around the loop that tutorials teach: `tutorial_optuna.py <task.json> <space.json>`.

`space.json`: trials, processes, threads of each, and the ranges that Graft is given too. Processes share a study
through Optuna's journal.
"""

import json
import sys
import time
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from benchmarks.rivals.task import Incumbent, Task, leave, read_task, scores
from benchmarks.rivals.tutorial import folders, loader, steps

ENDS = (2, 4, 7, 14, 19)  # of the stages of `features`, one per resolution


def network(task: Task, weights: Path | str) -> nn.Module:
    net: nn.Module = mobilenet_v2(num_classes=len(task.classes))
    own = {n: t for n, t in load_file(weights).items() if t.shape == net.state_dict()[n].shape}
    net.load_state_dict(own, strict=False)
    return net


def train(task: Task, config: Mapping[str, Any], batch_size: int) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """The best epoch by val log-loss: that, its scores, its weights."""
    net, data = network(task, task.weights), folders(Path(task.folder) / "pictures", task.resolution)
    features, head = net.get_submodule("features"), net.get_submodule("classifier")
    frozen = ENDS[config["depth"] - 1] if config["depth"] else 0
    for stage in list(features.children())[:frozen]:
        stage.requires_grad_(False)
    groups = [{"params": list(head.parameters()), "lr": config["lr"], "weight_decay": config["decay_of_head"]}]
    if inner := [w for w in features.parameters() if w.requires_grad]:
        rate = config["lr"] * config["ratio"]
        groups.append({"params": inner, "lr": rate, "weight_decay": config["decay"]})
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["steps"])
    batches = {split: loader(data[split], batch_size, shuffle=split == "train") for split in ("train", "val")}
    best: tuple[float, dict[str, float], dict[str, Tensor]] | None = None
    left = int(config["steps"])
    while left > 0:
        for _ in steps(net, optimizer, batches["train"]):
            schedule.step()
            left -= 1
            if left == 0:
                break
        net.eval()
        with torch.no_grad():
            seen = [(net(images), labels) for images, labels in batches["val"]]
        val = scores(torch.cat([x for x, _ in seen]).numpy(), torch.cat([y for _, y in seen]).numpy())
        if best is None or val["log_loss"] < best[0]:
            best = val["log_loss"], val, {n: t.clone() for n, t in net.state_dict().items()}
    assert best is not None
    return best


def search(task_file: str, space: Mapping[str, Any], journal: str, n_trials: int, seed: int) -> None:
    task = read_task(task_file)
    torch.set_num_threads(space["threads"])
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        config: dict[str, Any] = {"depth": trial.suggest_int("depth", *space["depth"])}
        config["steps"] = trial.suggest_int("steps", *space["steps"], log=True)
        for name in ("lr", "ratio", "decay", "decay_of_head"):
            config[name] = trial.suggest_float(name, *space[name], log=True)
        loss, val, state = train(task, config, space["batch_size"])
        save_file(state, Path(task.out) / f"trial-{trial.number}.safetensors")
        trial.set_user_attr("val", val)
        return loss

    study = optuna.load_study(
        study_name="tutorial", storage=opened(journal), sampler=optuna.samplers.TPESampler(seed=seed)
    )
    study.optimize(objective, n_trials=n_trials)


def opened(journal: str) -> optuna.storages.BaseStorage:
    return JournalStorage(JournalFileBackend(journal))


def main(task_file: str, space: Mapping[str, Any]) -> None:
    task = read_task(task_file)
    journal = str(Path(task.out) / "journal")
    study = optuna.create_study(study_name="tutorial", storage=opened(journal))
    n = space["processes"]
    shares = [len(range(place, space["trials"], n)) for place in range(n)]
    # Forked, as loaders then fork their workers too: spawned ones would import torch in every epoch.
    children = [
        get_context("fork").Process(target=search, args=(task_file, space, journal, share, task.seed + place))
        for place, share in enumerate(shares)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        if child.exitcode:
            raise RuntimeError("a search has died")
    best = study.best_trial
    net = network(task, Path(task.out) / f"trial-{best.number}.safetensors").eval()
    torch.set_num_threads(n * space["threads"])
    with torch.no_grad():
        test = np.concatenate([net(images).numpy() for images, _ in _test(task, space["batch_size"])])
    searched_s = time.time() - task.began
    leave(
        task, [Incumbent(searched_s, best.user_attrs["val"], test)], searched_s=searched_s, n_trials=len(study.trials)
    )


def _test(task: Task, batch_size: int) -> Any:
    from torchvision.datasets import ImageFolder

    root, view = (
        Path(task.folder) / "pictures",
        folders(Path(task.folder) / "pictures", task.resolution)["val"].transform,
    )
    return loader(ImageFolder(str(root / "test"), view), batch_size, shuffle=False)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text("utf-8")))
