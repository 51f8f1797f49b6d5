"""Fine-tuning as tutorials teach it: `ImageFolder`, a `DataLoader` with two workers, PIL, float32, one optimizer step
after another; accuracy on val after every epoch. Knows torch and torchvision alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_WORKERS = 2


def folders(root: Path, resolution: int) -> dict[str, ImageFolder]:
    """`root`/train and `root`/val, a folder per class in each."""
    seen = [ToTensor(), Normalize(MEAN, STD)]
    views = {
        "train": Compose([RandomResizedCrop(resolution, scale=(0.35, 1.0)), RandomHorizontalFlip(), *seen]),
        "val": Compose([Resize(round(resolution * 8 / 7)), CenterCrop(resolution), *seen]),
    }
    return {split: ImageFolder(str(root / split), view) for split, view in views.items()}


def loader(data: Dataset[tuple[Tensor, int]], batch_size: int, *, shuffle: bool) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, drop_last=shuffle, num_workers=N_WORKERS)


def train(
    network: nn.Module, root: Path, *, resolution: int, epochs: int, batch_size: int, lr: float
) -> Iterator[float]:
    """SGD with momentum; yields the accuracy on val after every epoch."""
    data = folders(root, resolution)
    batches = {split: loader(data[split], batch_size, shuffle=split == "train") for split in data}
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for _ in steps(network, optimizer, batches["train"]):
            pass
        network.eval()
        with torch.no_grad():
            right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches["val"])
        yield right / len(data["val"])


def steps(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """One optimizer step after another; yields after each."""
    network.train()
    for images, labels in batches:
        loss = functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield
