"""Average pooling to a fixed grid, for networks whose first linear layer wants a map of one size."""

import torch
from torch import Tensor, nn


class GridPool(nn.Module):
    """(B, c, h, w) -> (B, c, side, side): each cell is the mean of the pixels it covers; a map of that size stays.

    The same numbers as adaptive average pooling, of any input size, larger or smaller. Written as a product with the
    matrix of the averages, so that its gradient is deterministic on every device.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if (height, width) == (self.side, self.side):
            return x
        rows, columns = (averages(size, self.side, x.device).to(x.dtype) for size in (height, width))
        return rows @ x @ columns.T


def averages(size: int, n_cells: int, device: torch.device | None = None) -> Tensor:
    """(n_cells, size): row i holds the weights of the pixels from floor(i size / n) up to ceil((i + 1) size / n)."""
    cell = torch.arange(n_cells, device=device)[:, None]
    pixel = torch.arange(size, device=device)
    covered = (pixel * n_cells < (cell + 1) * size) & ((pixel + 1) * n_cells > cell * size)
    return covered / covered.sum(1, keepdim=True)
