"""Born-again networks: each generation learns the answers of the one before it, of the same architecture.

Generation 0 is trained on the labels. Every later one minimises, with p = softmax(z of the generation before) and
q = softmax(z), both (B, C) and at temperature 1, on the same views,

    L = mean_b - sum_c p_bc log q_bc                    labels = False: BAN, the labels count nothing
    L = mean_b - sum_c p_bc log q_bc + CE(y, q)         labels = True: BAN+L

dL/dz = (q - p) / B; a teacher that is certain makes it cross-entropy. With `ensemble` the probabilities of all
generations, generation 0 included, are averaged (BANE); without it the last generation is the answer. Either way a
generation is, and teaches as, what was best of it on val. Deviation: each generation restarts from the same pretrained
weights with a new head seed, not from a new random network, and the recipe's steps are shared equally, so that k
generations after the first make each 1 / (k + 1) as long. Furlanello et al. 2018, arXiv:1805.04770.
Cost: one forward pass of the generation before per step (none in generation 0), one copy of the network; predictions of
an ensemble cost as many forward passes as it has members.
"""

from collections.abc import Generator

import torch
from torch import Tensor

from domain.space import Choice, IntRange
from transfer.generations import lineage, soft_cross_entropy
from transfer.phase import Outcome, Phase, Plan
from transfer.step import Step

SPACE = {
    "generations": IntRange(low=1, high=3, default=1),
    "labels": Choice(options=(False, True), default=False),
    "ensemble": Choice(options=(False, True), default=False),
}


def phases(
    plan: Plan, *, generations: int, labels: bool, ensemble: bool  # noqa: ARG001
) -> Generator[Phase, Outcome, None]:  # fmt: skip
    yield from lineage(plan, generations, keep="member" if ensemble else "best")


def loss(step: Step, *, generations: int, labels: bool, ensemble: bool) -> Tensor:  # () # noqa: ARG001
    soft = soft_cross_entropy(step.student.logits, torch.softmax(step.teacher.logits.detach(), dim=1))
    return soft + step.task_loss if labels else soft
