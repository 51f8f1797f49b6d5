"""Confidence weighted by teacher max: born-again generations on labels, each item weighed by its teacher's certainty.

    L = sum_b w_b CE(y_b, q_b),    w_b = max_c p_bc / sum_u max_c p_uc        (the weights of a batch sum to 1)

p = softmax(z of the generation before), q = softmax(z), both (B, C), on the same views. All that the teacher tells is
how sure it is, right or wrong: the control that separates the weighing of items from the dark knowledge in the other
probabilities. dL/dz_b = w_b (q_b - y_b); a teacher that is equally sure of all items makes it cross-entropy. Labels
after mixup are probabilities; the recipe's label smoothing counts in generation 0 alone. Generation 0 is trained on the
labels. Deviation: each generation restarts from the same pretrained weights with a new head seed, and the recipe's
steps are shared equally. Furlanello et al. 2018, arXiv:1805.04770, section 3.3.
Cost: one forward pass of the generation before per step (none in generation 0), one copy of the network.
"""

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn import functional

from domain.space import IntRange
from transfer.generations import lineage
from transfer.phase import Outcome, Phase, Plan
from transfer.step import Step

SPACE = {"generations": IntRange(low=1, high=3, default=1)}


def phases(plan: Plan, *, generations: int) -> Generator[Phase, Outcome, None]:
    yield from lineage(plan, generations)


def loss(step: Step, *, generations: int) -> Tensor:  # () # noqa: ARG001
    return weighted_cross_entropy(step.student.logits, step.targets, confidence(step.teacher.logits))


def confidence(teacher: Tensor) -> Tensor:  # logits (B, C) -> (B,)
    """Share of each item: the teacher's largest probability, over the sum of those of the batch."""
    largest = torch.softmax(teacher.detach(), dim=1).amax(1)
    return largest / largest.sum()


def weighted_cross_entropy(student: Tensor, targets: Tensor, weights: Tensor) -> Tensor:  # -> ()
    """sum_b w_b CE_b of logits (B, C), class indices (B,) or probabilities (B, C), weights (B,)."""
    return (weights * functional.cross_entropy(student, targets, reduction="none")).sum()
