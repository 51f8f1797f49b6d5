"""Several networks that answer as one, by the mean of their probabilities: z = log(sum_m a_m softmax(z_m)).

a_m, the share of a member, is 1/M unless shares are given.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.network import Network, Seen


class Ensemble(nn.Module):
    """Members that see the same pixels; their weights are called `members.<m>.<…>`. A member may be an ensemble."""

    def __init__(self, members: "Sequence[Network | Ensemble]", shares: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.backbone: str = members[0].backbone
        self.shares = shares

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        return mean_logits([member(x) for member in self.members], self.shares)

    def look(self, x: Tensor, *, convs: bool = False) -> Seen:
        """Logits of all members; what lies inside a network is the first one's."""
        first: Seen
        first, *others = [member.look(x, convs=convs) for member in self.members]  # type: ignore[operator]
        return first._replace(logits=mean_logits([first.logits, *(other.logits for other in others)], self.shares))


def mean_logits(logits: Sequence[Tensor], shares: Sequence[float] | None = None) -> Tensor:  # M x (B, C) -> (B, C)
    """The logarithm of the mean of probabilities; a single one is returned as it is. Shares are > 0 and sum to 1."""
    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack([each.float().log_softmax(1) for each in logits])
    if shares is None:
        return stacked.logsumexp(0) - math.log(len(logits))
    return (stacked + torch.tensor(shares, device=stacked.device).log()[:, None, None]).logsumexp(0)
