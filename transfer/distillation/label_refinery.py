"""Label refinery: the labels of every crop are replaced by what another network says of that very crop.

    L = mean_b - sum_c p_bc log q_bc,    p = softmax(refinery(x_b)),    q = softmax(z(x_b))

x_b is one augmented crop, the same for both, p and q (B, C) at temperature 1. It is the KL divergence plus the entropy
of p, which the network cannot change: the gradient is (q - p) / B. The labels of the dataset are not used; a crop
without the object gets what it shows. Nothing is kept per image, since the answer depends on the crop. The refinery is
in eval mode (the authors' code leaves it in train mode). Under mixup both see the mixed images and mixed labels are
not used either.

`refinery`  self: a network of this very recipe, trained on the labels first; teacher: the job's teacher.
`chain`     how often a network is trained on refined labels, each by the one before (AlexNet^k has chain k - 1).

Deviation: each network of the chain restarts from the same pretrained weights with a new head seed, and the recipe's
steps are shared equally. Bagherinezhad et al. 2018, arXiv:1805.02641.
Cost: one forward pass of the refinery per step (none while the first of `self` learns from labels), one copy of it.
"""

from collections.abc import Generator

import torch
from torch import Tensor

from domain.space import Choice, IntRange
from transfer.generations import lineage, soft_cross_entropy
from transfer.phase import Outcome, Phase, Plan
from transfer.step import Step

SPACE = {
    "refinery": Choice(options=("self", "teacher"), default="self"),
    "chain": IntRange(low=1, high=3, default=1),
}
NEEDS_BY = {"refinery": {"teacher": "teacher"}}


def phases(plan: Plan, *, refinery: str, chain: int) -> Generator[Phase, Outcome, None]:
    yield from lineage(plan, chain, first="labels" if refinery == "self" else "teacher")


def loss(step: Step, *, refinery: str, chain: int) -> Tensor:  # () # noqa: ARG001
    return soft_cross_entropy(step.student.logits, torch.softmax(step.teacher.logits.detach(), dim=1))
