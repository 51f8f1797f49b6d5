"""Train 1x1 convolutions beside or behind the frozen spatial ones, all batch norms and the head (Rebuffi et al. 2018).

mode "parallel"    y = W * x + A x                  A: 1x1 at the stride of W, before the batch norm that follows W
mode "series"      y = z + A BN(z),  z = W * x      one batch norm more per convolution

Every convolution that looks at neighbours gets one, the first one included; its kernel, like every other kernel and
bias of the backbone, stays. The papers have 3x3 kernels only; others (7x7 stems, 1x7) are treated alike. A parallel A
acts on the middle of the window: it is W with another middle tap, whatever the padding. A grouped or depthwise W has an
A of the same groups: as many weights as one tap of W, a scale per channel where W is depthwise. All A begin as zeros:
the network begins exactly as the frozen one. In parallel a kernel of out * in / groups * taps weights brings
out * in / groups more. Batch norms are trained, affine pair and statistics, as the recipe's `batch_norm` allows.
Series adapters in a network that was not pretrained with them fall far behind parallel ones (Rebuffi et al. 2018,
CIFAR-100: 70.7 against 80.6).

Cost: a forward of about 1/9 more in parallel; no gradients of the backbone's kernels.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from domain.space import Choice
from models.network import HEAD, Network
from transfer.grafting import drawing, is_norm, still
from transfer.phase import Rebuilt, Site, covers

SPACE = {"mode": Choice(options=("parallel", "series"), default="parallel")}
NEEDS = ("start", "conv", "batch_norm")
ADDS_WEIGHTS = True


def rebuild(net: Network, site: Site, *, mode: str) -> Rebuilt:
    new: list[str] = []
    for path, conv in list(net.named_modules()):
        if not isinstance(conv, nn.Conv2d) or covers((HEAD,), path) or not _has_a_middle(conv):
            continue
        with drawing(site.rng):
            adapter = Parallel(conv) if mode == "parallel" else Series(conv)
        conv.register_forward_hook(adapter.after)
        conv.add_module("adapter", adapter)
        new.append(f"{path}.adapter")
    return Rebuilt(net, new=tuple(new), frozen=still(net, new, is_norm))


def _has_a_middle(conv: nn.Conv2d) -> bool:
    odd = all(k % 2 == 1 for k in conv.kernel_size)
    return odd and max(conv.kernel_size) > 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class Parallel(nn.Module):
    """The branch beside a convolution: its input (B, c, h, w) -> its output's shape (B, c', h', w')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = pointwise(conv.in_channels, conv.out_channels, stride=conv.stride, groups=conv.groups)
        # The middle tap of the window sees the picture moved by this much; nothing where the padding is half a kernel.
        (top, left), dilation, kernel = map(int, conv.padding), conv.dilation, conv.kernel_size
        rows, columns = top - dilation[0] * (kernel[0] - 1) // 2, left - dilation[1] * (kernel[1] - 1) // 2
        self.margin = (columns, columns, rows, rows)  # left, right, top, bottom; negative cuts

    def forward(self, x: Tensor) -> Tensor:
        moved = functional.pad(x, self.margin) if any(self.margin) else x
        answer: Tensor = self.conv(moved)
        return answer

    def after(self, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Forward hook of the convolution."""
        beside: Tensor = self(inputs[0])
        return output + beside


class Series(nn.Module):
    """The residual layer behind a convolution: its output (B, c, h, w) -> the same shape."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(conv.out_channels)
        self.conv = pointwise(conv.out_channels, conv.out_channels, stride=(1, 1), groups=conv.groups)

    def forward(self, z: Tensor) -> Tensor:
        change: Tensor = self.conv(self.bn(z))
        return z + change

    def after(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """Forward hook of the convolution."""
        answer: Tensor = self(output)
        return answer


def pointwise(n_in: int, n_out: int, *, stride: tuple[int, ...], groups: int) -> nn.Conv2d:
    """A 1x1 convolution of zeros."""
    conv = nn.Conv2d(n_in, n_out, 1, stride=stride, groups=groups, bias=False)  # type: ignore[arg-type]
    nn.init.zeros_(conv.weight)
    return conv
