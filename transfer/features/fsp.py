"""FSP: the flow between layers, a Gram matrix of two maps, is learnt from a guide first, the task afterwards.

G_ij = 1/(h w) sum_{pixels} F1_i F2_j                      (B, m, n), F1 (B, m, h, w), F2 (B, n, h, w) of one section
L    = mean_b sum_sections ||G_T - G_S||_F^2               squared, all sections weigh the same

Two phases, no joint loss: for `share` of the steps L alone at rate `lr`, then the task alone from those weights. The
recipe's regularizer counts in both phases, every other part in the second. A section lies between two neighbouring
stages: F1 is the output of the one before, F2 the output of its own; the larger map is max-pooled to the smaller.
Sections of two networks are matched from the last backwards. Both networks must have the same channels there, of which
the Grams are made: others are refused.
The guide is the job's teacher, or the source as loaded.
Yim, Joo, Bae, Kim, A gift from knowledge distillation, CVPR 2017; stage 1 at 1e-3 .. 1e-5. (torchdistill takes norms of
columns, unsquared; others average the squares over m n, pool by means, and train on both losses at once.)

Cost: one forward pass of the guide per step of the first phase.
"""

from collections.abc import Generator, Mapping, Sequence

import torch
from torch import Tensor

from domain.errors import Invalid
from domain.recipe import SLOTS
from domain.space import Choice, FloatRange
from transfer.bench import Bench
from transfer.maps import guide_of, inside, max_pooled, pairs, tried
from transfer.phase import OptimizerSpec, Outcome, Phase, Plan
from transfer.step import Step

SPACE = {
    "share": FloatRange(low=0.1, high=0.5, default=0.3),
    "lr": FloatRange(low=1e-5, high=1e-2, log=True, default=1e-3),
    "guide": Choice(options=("teacher", "source"), default="teacher"),
}
NEEDS = ("taps",)
NEEDS_BY = {"guide": {"source": "start", "teacher": "teacher"}}
COMPARES = "widths"


def prepare(bench: Bench, *, share: float, lr: float, guide: str) -> dict[str, Tensor]:  # noqa: ARG001
    """Nothing but the question whether the Grams of the two networks can be compared."""
    guiding = inside(bench.setting.teachers[0]) if guide == "teacher" else bench.setting.source
    check(bench.net.backbone, tried(bench.net), guiding.backbone, tried(guiding))
    return {}


def phases(plan: Plan, *, share: float, lr: float, guide: str) -> Generator[Phase, Outcome, None]:  # noqa: ARG001
    body = tuple(unit for unit in plan.everything if unit != "head")
    rates = {unit: OptimizerSpec(lr=lr) for unit in plan.stages}  # what surgery put beside them has rates of its own
    yield Phase(trainable=body, terms={"fsp": 1.0, "regularizer": 1.0}, optimizer=rates, share=share, keep="last")
    others = {slot: 1.0 for slot in SLOTS if slot != "feature"}
    yield Phase(trainable=plan.everything, terms={"task": 1.0, **others})


def loss(step: Step, *, share: float, lr: float, guide: str) -> Tensor:  # noqa: ARG001 - ()
    matched = pairs(step.student.features, guide_of(step, guide).features)
    return flow_distance([own for own, _ in matched], [given for _, given in matched])


def flow_distance(own: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:  # n x (B, c, h, w), twice -> ()
    """Mean over the batch of the squared distances between Grams of neighbouring maps, summed over the sections."""
    gaps = [
        (gram(a, b) - gram(c, d)).square().sum((1, 2)).mean()
        for a, b, c, d in zip(own[:-1], own[1:], given[:-1], given[1:], strict=True)
    ]
    return torch.stack(gaps).sum()


def gram(first: Tensor, last: Tensor) -> Tensor:  # (B, m, h, w), (B, n, h', w') -> (B, m, n)
    size = (min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3]))
    one, two = (max_pooled(maps.float(), size).flatten(2) for maps in (first, last))
    with torch.autocast(first.device.type, enabled=False):
        return one @ two.mT / (size[0] * size[1])


def check(name: str, own: Mapping[str, Tensor], its_name: str, its: Mapping[str, Tensor]) -> None:
    """Invalid unless both networks have a section and the same channels in those that are compared."""
    matched = pairs(own, its)
    if len(matched) < 2:
        raise Invalid("no_section", f"feature.fsp needs two stages with maps, {name} and {its_name} share fewer")
    mine, others = [a.shape[1] for a, _ in matched], [b.shape[1] for _, b in matched]
    if mine != others:
        raise Invalid(
            "channels_differ", f"feature.fsp compares Gram matrices of channels: {name} has {mine} in its last stages, "
            f"its guide {its_name} has {others}; choose a guide of the same widths", own=mine, guide=others,
        )  # fmt: skip
