"""Several networks that answer as one, by the mean of their probabilities: z = log(1/M sum_m softmax(z_m))."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.network import Network, Seen


class Ensemble(nn.Module):
    """Members of one backbone; their weights are called `members.<m>.<…>`."""

    def __init__(self, members: Sequence[Network]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.backbone = members[0].backbone

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        return mean_logits([member(x) for member in self.members])

    def look(self, x: Tensor, *, convs: bool = False) -> Seen:
        """Logits of all members; what lies inside a network is the first one's."""
        first: Seen
        first, *others = [member.look(x, convs=convs) for member in self.members]  # type: ignore[operator]
        return first._replace(logits=mean_logits([first.logits, *(other.logits for other in others)]))


def mean_logits(logits: Sequence[Tensor]) -> Tensor:  # M x (B, C) -> (B, C)
    """The logarithm of the mean of probabilities; a single one is returned as it is."""
    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack([each.float().log_softmax(1) for each in logits])
    return stacked.logsumexp(0) - math.log(len(logits))
