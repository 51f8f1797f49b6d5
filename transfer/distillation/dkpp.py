"""Dark knowledge with permuted predictions: born-again generations whose teacher's minor answers are shuffled.

    L = mean_b - sum_c phi_b(p_b)_c log q_bc

p = softmax(z of the generation before), q = softmax(z), both (B, C), on the same views. phi_b leaves the largest
probability of item b where it is and puts the other C - 1 into a random order, drawn anew for every item and step: what
the teacher knows about similarity between classes is destroyed, its certainty is kept. Rows still sum to 1, argmax and
max stay; with two classes nothing changes and it is `born_again`. Generation 0 is trained on the labels, the later ones
without them. Deviation: each generation restarts from the same pretrained weights with a new head seed, and the
recipe's steps are shared equally. Furlanello et al. 2018, arXiv:1805.04770, section 3.3.
Cost: one forward pass of the generation before per step (none in generation 0), one copy of the network.
"""

from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from domain.space import IntRange
from transfer.generations import lineage, soft_cross_entropy
from transfer.phase import Outcome, Phase, Plan
from transfer.step import Step

SPACE = {"generations": IntRange(low=1, high=3, default=1)}


def phases(plan: Plan, *, generations: int) -> Generator[Phase, Outcome, None]:
    yield from lineage(plan, generations)


def loss(step: Step, *, generations: int) -> Tensor:  # () # noqa: ARG001
    p = torch.softmax(step.teacher.logits.detach(), dim=1)
    n, n_classes = p.shape
    drawn = step.rng.permuted(np.tile(np.arange(n_classes - 1), (n, 1)), axis=1)
    return soft_cross_entropy(step.student.logits, permuted(p, torch.from_numpy(drawn).to(p.device)))


def permuted(p: Tensor, order: Tensor) -> Tensor:  # (B, C), (B, C - 1) -> (B, C)
    """All but the largest probability of each row in another order: the j-th of them becomes the order[b, j]-th."""
    is_largest = torch.zeros_like(p, dtype=torch.int64).scatter_(1, p.argmax(1, keepdim=True), 1)
    minor = is_largest.argsort(dim=1, stable=True)[:, :-1]  # (B, C - 1) classes but the largest, in their order
    return p.scatter(1, minor, p.gather(1, minor.gather(1, order)))
