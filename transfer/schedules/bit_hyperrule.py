"""BiT-HyperRule: fine-tuning whose every setting follows from the number and the size of the images.

    n training images     steps     mixup alpha         H x W             resize -> crop
    n < 20 000              500     0                   H W < 96^2        160 -> 128
    n < 500 000          10 000     0.1                 otherwise         448 -> 384
    otherwise            20 000     0.1

SGD with momentum 0.9 and peak rate 0.003 B / 512 at batch size B for every weight, the head too, which starts at zero
(an mlp: its last layer); a linear warm-up over 100 (small) or 500 of these steps; times 0.1 at 30, 60 and 90 % of the
steps. No weight decay: no regularizer can stand beside it. `phases` follows the rule in the rates, the curve, the head
and mixup, scaled to the steps that the recipe has. Steps, resolution and batch size are the recipe's own, as are the
optimizer (the rule means `sgd`; gradient clipping off is `optimizer.grad_clip: 0`) and random crops and flips.

`hyperrule` gives the steps and sizes. The authors' code differs from their text: 512 -> 480 for large images (the
text only for R152x4), a small schedule that drops at 40, 60 and 80 %, a warm-up that begins at rate 0, and drops one
step later. Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3.
Cost: that of fine-tuning.
"""

from collections.abc import Generator
from typing import NamedTuple

from torch import nn

from models.network import Network
from transfer.optimizers import stairs
from transfer.phase import OptimizerSpec, Outcome, Phase, Plan, Rebuilt, Site

NEEDS = ("start",)
CLASHES = ("regularizer",)
IGNORES = ("optimizer.lr_head", "optimizer.inner_ratio", "optimizer.stage_decay", "optimizer.momentum",
           "optimizer.warmup_frac", "data.mixup_alpha")  # fmt: skip
DEMANDS = {"optimizer.name": ("sgd",)}

BOUNDARIES = (0.3, 0.6, 0.9)
MOMENTUM = 0.9


class Rule(NamedTuple):
    steps: int
    n_warm: int  # of these steps
    mixup_alpha: float
    resize: int
    crop: int

    def lr(self, batch_size: int) -> float:
        """Peak rate of every weight."""
        return 0.003 * batch_size / 512


def hyperrule(n_train: int, height: int, width: int) -> Rule:
    """What the rule says to `n_train` images of `height` x `width`."""
    resize, crop = (160, 128) if height * width < 96**2 else (448, 384)
    if n_train < 20_000:
        return Rule(500, 100, 0.0, resize, crop)
    return Rule(10_000 if n_train < 500_000 else 20_000, 500, 0.1, resize, crop)


def rebuild(net: Network, site: Site) -> Rebuilt:  # noqa: ARG001
    last = [module for module in net.head.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return Rebuilt(net)


def phases(plan: Plan) -> Generator[Phase, Outcome, None]:
    rule = hyperrule(plan.n_train, 224, 224)  # sizes are the recipe's
    same = OptimizerSpec(lr=rule.lr(plan.batch_size), momentum=MOMENTUM)
    n_warm = round(plan.steps * rule.n_warm / rule.steps)
    yield Phase(
        trainable=plan.everything, optimizer=dict.fromkeys(plan.everything, same),
        rate=stairs(BOUNDARIES, n_warm), mixup_alpha=rule.mixup_alpha,
    )  # fmt: skip
