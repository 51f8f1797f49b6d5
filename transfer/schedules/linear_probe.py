"""Linear probe: multinomial logistic regression on the frozen source's features of evaluation pixels.

    min over W (C, D), b (C,) of  1/n sum_i CE(y_i, softmax(W x_i + b)) + strength / 2 ||W||^2      (b is free)

for n feature vectors x_i (D,) in eval mode, without augmentation. Solved exactly, for each of 45 strengths from 1e-6 to
1e5; val chooses. It is scikit-learn's LogisticRegression with C = 1 / (n strength). The answer is the head of an
ordinary checkpoint. Kornblith et al. 2019, arXiv:1805.08974; protocol of Chen et al. 2020 (SimCLR), B.8.
Cost: one forward pass of every image, then L-BFGS on the features; no steps of gradient descent.
"""

from collections.abc import Generator

from transfer.phase import Outcome, Phase, Plan

NEEDS = ("start",)
DEMANDS = {"head.kind": ("linear",)}
IGNORES = ("optimizer", "batch_norm", "steps", "data.batch_size", "data.augmentation", "data.flip", "data.views",
           "data.mixup_alpha", "data.label_smoothing")  # fmt: skip
CLASHES = ("surgery", "feature", "distillation", "regularizer", "averaging", "sampling")


def phases(plan: Plan) -> Generator[Phase, Outcome, None]:  # noqa: ARG001 - the same whatever the plan
    yield Phase(trainable=("head",), solve="closed_form", share=1.0)
