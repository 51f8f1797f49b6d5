"""Linear probe: multinomial logistic regression on the frozen source's features of evaluation pixels.

Solved exactly, for each of 45 penalty strengths from 1e-6 to 1e5; val chooses (Kornblith et al. 2019; SimCLR, B.8).
The answer is the head of an ordinary checkpoint.
"""

from collections.abc import Generator

from transfer.phase import Outcome, Phase, Plan

CLASHES = ("surgery", "feature", "distillation", "regularizer", "averaging", "sampling")


def phases(plan: Plan) -> Generator[Phase, Outcome, None]:  # noqa: ARG001 - the same whatever the plan
    yield Phase(trainable=("head",), solve="closed_form", share=1.0)
