"""Freeze the first `depth` stages: their weights and batch-norm statistics stay the source's, bit for bit.

The rest keeps its pretrained weights and is trained in one phase. Depth 0 is full fine-tuning; at the number of stages
or beyond only the head is trained. (Yosinski et al. 2014 re-initialise the rest: that is this part beside
`surgery.reinit_above`.)
"""

from collections.abc import Generator

from domain.space import IntRange
from transfer.phase import Outcome, Phase, Plan

SPACE = {"depth": IntRange(low=0, high=32, default=0)}
SEARCHED = True


def phases(plan: Plan, *, depth: int) -> Generator[Phase, Outcome, None]:
    frozen = plan.stages[:depth]
    yield Phase(trainable=tuple(unit for unit in plan.everything if unit not in frozen))
