"""Fine-tuning as a tutorial teaches it, made decent: pictures in memory as bytes, channels last, one thread.

SGD with momentum and a cosine over all steps, random crops and flips, the backbone at a share of the head's rate; the
best of ten evaluations on val is kept. What is searched: both rates, weight decay, batch size, steps, freezing.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v2
from torchvision.transforms import v2

from benchmarks.rivals.task import Logits, Task, scores

WIDTHS = {"mobilenet_v2": 1.0, "mobilenet_v2_w035": 0.35}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_EVALUATIONS = 10
RANGES = {"lr": (1e-4, 1e-1), "ratio": (1e-2, 1.0), "weight_decay": (1e-6, 1e-2), "steps": (50, 500)}  # logarithmic
CHOICES: dict[str, tuple[Any, ...]] = {"batch_size": (16, 32), "frozen": (False, True)}


class Evaluation(NamedTuple):
    number: int  # 1 to N_EVALUATIONS
    val: dict[str, float]
    state: Callable[[], dict[str, Tensor]]  # a copy of the weights


class Bench:
    """The pictures of a task, read once, and networks for them."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        self.task = task
        self.train, self.val, self.test = (_tensors(*task.data(split)) for split in ("train", "val", "test"))
        self.start = load_file(task.weights)
        self.crop = v2.RandomResizedCrop(task.resolution, scale=(0.35, 1.0), antialias=True)
        self.flip = v2.RandomHorizontalFlip()

    def network(self, state: Mapping[str, Tensor] | None = None) -> nn.Module:
        net = mobilenet_v2(width_mult=WIDTHS[self.task.backbone])
        if state is None:
            net.load_state_dict({n: t for n, t in self.start.items() if not n.startswith("classifier")}, strict=False)
        net.classifier[1] = nn.Linear(net.last_channel, len(self.task.classes))
        if state is not None:
            net.load_state_dict(dict(state))
        found: nn.Module = net.to(memory_format=torch.channels_last)
        return found

    def fit(self, config: Mapping[str, Any], seed: int) -> Iterator[Evaluation]:
        """Train; yields ten times, and stops when the task's time is over."""
        torch.manual_seed(seed)
        net = self.network()
        features, head = net.get_submodule("features"), net.get_submodule("classifier")
        groups = [{"params": list(head.parameters()), "lr": config["lr"]}]
        if config["frozen"]:
            features.requires_grad_(False)
        else:
            groups.append({"params": list(features.parameters()), "lr": config["lr"] * config["ratio"]})
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=config["weight_decay"])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["steps"])
        pixels, labels = self.train
        marks = {round(config["steps"] * k / N_EVALUATIONS): k for k in range(1, N_EVALUATIONS + 1)}
        order: list[int] = []
        for step in range(1, config["steps"] + 1):
            if self.task.left_s() <= 0:
                return
            while len(order) < config["batch_size"]:
                order += torch.randperm(len(labels)).tolist()
            chosen, order = order[: config["batch_size"]], order[config["batch_size"] :]
            net.train()
            views = torch.stack([self.flip(self.crop(pixels[i])) for i in chosen])
            loss = functional.cross_entropy(net(_normal(views)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step in marks:
                val = scores(self.logits(net, self.val[0]), self.val[1].numpy())
                yield Evaluation(
                    marks[step],
                    val,
                    lambda: {n: t.clone(memory_format=torch.contiguous_format) for n, t in net.state_dict().items()},
                )

    def logits(self, net: nn.Module, pixels: Tensor) -> Logits:
        net.eval()
        with torch.inference_mode():
            found: NDArray[np.float32] = torch.cat([net(_normal(chunk)) for chunk in pixels.split(64)]).numpy()
        return found

    def on_test(self, state: Mapping[str, Tensor]) -> Logits:
        return self.logits(self.network(state), self.test[0])


def _tensors(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)


def _normal(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(m).view(1, 3, 1, 1) for m in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
