"""LP-FT: the head is solved on the frozen features first, then everything is trained from there.

Phase 1 is `linear_probe`: the exact optimum over W, b of 1/n sum_i CE + strength / 2 ||W||^2 on features of evaluation
pixels, the strength chosen by val. Phase 2 trains every weight, the head from that optimum, in all of the recipe's
steps. With a random head the first steps of fine-tuning distort features that were good for items unlike the training
items; from the probe's head there is little to gain by it. The head is fitted to features in eval mode, so that
`batch_norm: eval` begins exactly there. If no evaluation of phase 2 beats the probe on val, the probe is the answer.
Kumar et al. 2022, arXiv:2202.10054, who train the probe by gradient descent or L-BFGS alike.
Cost: one forward pass of every image and L-BFGS on the features, then that of fine-tuning.
"""

from collections.abc import Generator

from transfer.phase import Outcome, Phase, Plan

NEEDS = ("start",)
DEMANDS = {"head.kind": ("linear",)}


def phases(plan: Plan) -> Generator[Phase, Outcome, None]:
    yield Phase(trainable=("head",), solve="closed_form")
    yield Phase(trainable=plan.everything)
