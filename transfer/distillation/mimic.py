"""Mimic: the student regresses on the teacher's logits; the labels are not used.

    L = 1/2 mean_b ||z_b - v_b||^2          sum over classes, mean over the batch; z student, v teacher, both (B, C)

dL/dz = (z - v) / B. A softmax does not see a constant added to all logits of an item, this loss does: with `centred`
both are taken minus their mean over the classes, and the constant is free. (That form times 1/C is the limit of
soft targets, T^2 KL, at a high temperature.) The teacher has the student's classes; an ensemble of teachers is known by
its log-probabilities, of which `centred` takes the arbitrary constant away. Some codes take the mean over classes
too, which is 2/C of this. Ba & Caruana 2014, arXiv:1312.6184, eq. 1 (not centred; logits there are not standardised).
Cost: one forward pass of the teacher per step, the teacher's weights.
"""

from torch import Tensor

from domain.space import Choice
from transfer.step import Step

SPACE = {"centred": Choice(options=(False, True), default=False)}
NEEDS = ("teacher",)


def loss(step: Step, *, centred: bool) -> Tensor:  # ()
    return logit_regression(step.student.logits, step.teacher.logits, centred=centred)


def logit_regression(student: Tensor, teacher: Tensor, *, centred: bool) -> Tensor:  # (B, C), (B, C) -> ()
    gap = student - teacher.detach()
    if centred:  # both minus their means is the gap minus its mean
        gap = gap - gap.mean(1, keepdim=True)
    return gap.square().sum(1).mean() / 2
