"""Generations: one network trained anew several times, each time by the one before it (Furlanello et al. 2018).

Every generation begins at the same pretrained w0 with a new head seed. The papers begin each at a new random network;
in transfer the start is given, so the head's seed, the order of the items and the crops are what differs (a declared
deviation). The recipe's steps are divided equally among the generations.
"""

from collections.abc import Generator
from typing import Literal

from torch import Tensor
from torch.nn import functional

from transfer.phase import Outcome, Phase, Plan


def lineage(
    plan: Plan, n: int, *, first: Literal["labels", "teacher"] = "labels", keep: Literal["best", "member"] = "best"
) -> Generator[Phase, Outcome, None]:
    """The phases of `n` taught generations.

    first = labels    generation 0 learns from the labels alone, then each of n from the one before: n + 1 phases
    first = teacher   generation 1 learns from the job's teacher, each later one from the one before: n phases
    """
    teachers: list[Literal["none", "given", "previous"]] = ["none" if first == "labels" else "given"]
    teachers += ["previous"] * (n if first == "labels" else n - 1)
    for place, teacher in enumerate(teachers):
        share = None if place == len(teachers) - 1 else 1 / len(teachers)
        yield Phase(trainable=plan.everything, begin="start", teacher=teacher, share=share, keep=keep)


def soft_cross_entropy(student: Tensor, probabilities: Tensor) -> Tensor:  # logits (B, C), (B, C) -> ()
    """mean_b - sum_c p_bc log q_bc with q = softmax(student); the gradient of the logits is (q - p) / B."""
    return functional.cross_entropy(student, probabilities)
