"""The yardstick: a plain PyTorch loop over uint8 pixels held in memory, nothing around it.

`python benchmarks/bare.py pixels.npy labels.npy` trains torchvision's resnet18 on (N, H, W, 3) uint8 and (N,) int64.
"""

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def train(
    network: nn.Module, pixels: Tensor, labels: Tensor, val_pixels: Tensor, val_labels: Tensor, *,
    epochs: int, batch_size: int, lr: float, device: str = "cpu", seed: int = 0, autocast: torch.dtype | None = None,
    compiled: bool = False,
) -> Iterator[float]:  # fmt: skip
    """SGD with momentum on `pixels` (N, H, W, 3) uint8; yields the accuracy on `val` after every epoch."""
    generator = torch.Generator().manual_seed(seed)
    network = network.to(device).to(memory_format=torch.channels_last)  # as its batches lie
    trained: nn.Module = torch.compile(network) if compiled else network  # type: ignore[assignment]
    mean = torch.tensor(MEAN, device=device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).mul(255).view(1, 3, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def batch(source: Tensor, items: Tensor) -> Tensor:  # (B, 3, H, W)
        return (source[items].to(device).permute(0, 3, 1, 2).float() - mean) / std

    for _ in range(epochs):
        network.train()
        order = torch.randperm(len(pixels), generator=generator)
        for start in range(0, len(order) - batch_size + 1, batch_size):
            items = order[start : start + batch_size]
            with torch.autocast(torch.device(device).type, autocast, enabled=autocast is not None):
                logits = trained(batch(pixels, items))
            loss = criterion(logits.float(), labels[items].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        network.eval()
        right = 0
        with torch.inference_mode(), torch.autocast(torch.device(device).type, autocast, enabled=autocast is not None):
            for items in torch.arange(len(val_pixels)).split(batch_size):
                right += int((network(batch(val_pixels, items)).argmax(1).cpu() == val_labels[items]).sum())
        yield right / len(val_pixels)


if __name__ == "__main__":
    import torchvision

    pixels, labels = (torch.from_numpy(np.load(path)) for path in sys.argv[1:3])
    cut = len(pixels) * 4 // 5
    network = torchvision.models.resnet18(num_classes=int(labels.max()) + 1)
    for accuracy in train(
        network, pixels[:cut], labels[:cut], pixels[cut:], labels[cut:], epochs=5, batch_size=32, lr=1e-2
    ):
        print(f"{accuracy:.3f}")
