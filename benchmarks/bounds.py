"""What this machine allows at most: operations at the peak of its matrix products, bytes at the speed of a copy.

Both are measured with the threads that torch has at the time, in the run whose figures they stand beside, by the
same clock.
"""

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.table import quantile
from models.build import build

Clock = Callable[[], float]  # in seconds
SIDE, SIDE_ON_DEVICE = 2048, 8192  # of the matrices
N_TIMES = 7


def peak_flops(
    dtype: torch.dtype = torch.float32, *, clock: Clock = time.perf_counter, device: str = "cpu"
) -> float:  # fmt: skip
    """Operations a second of a large matrix product; a multiplication and an addition are two."""
    side = SIDE if device == "cpu" else SIDE_ON_DEVICE
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(a, b, out=out)
        if device != "cpu":
            torch.cuda.synchronize(device)

    return 2 * side**3 / _seconds(multiply, clock)


def bandwidth_of_copy(*, clock: Clock = time.perf_counter) -> float:
    """Bytes read and written a second."""
    block = torch.zeros(64 * 2**20)
    other = torch.zeros_like(block)
    return 2 * block.nbytes / _seconds(lambda: other.copy_(block), clock)


def of_training(backbone: str, resolution: int, *, n_frozen: int = 0) -> float:
    """Operations of a training step per picture: forward once, backward twice as much above the frozen stages."""
    whole = of_looking(backbone, resolution)
    return whole + 2 * (whole - of_looking(backbone, resolution, depth=n_frozen)) if n_frozen else 3 * whole


def of_looking(backbone: str, resolution: int, *, depth: int | None = None) -> float:
    """Operations of a forward pass per picture, of all or of the first `depth` stages."""
    with torch.device("meta"):
        net, images = build(backbone, n_classes=2, seed=0).eval(), torch.empty(1, 3, resolution, resolution)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if depth is None:
            net(images)
        else:
            net.prefix(images, depth)
    return float(counter.get_total_flops())


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    """The median, the first time left out."""
    took = []
    for _ in range(1 + N_TIMES):
        began = clock()
        work()
        took.append(clock() - began)
    return quantile(took[1:], 0.5)
