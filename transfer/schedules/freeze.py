"""Freeze the first `depth` stages: their weights and batch-norm statistics stay the source's, bit for bit.

The rest keeps its pretrained weights and is trained in one phase. Depth 0 is full fine-tuning: every weight is trained,
the head at `optimizer.lr_head`, the stages at the rates that `optimizer.inner_ratio` and `optimizer.stage_decay` give
them. At the number of stages or beyond only the head is trained, on the features of the source. Training from scratch
is depth 0 with the source `scratch:<backbone>`. Yosinski et al. 2014, arXiv:1411.1792, re-initialise what is not
frozen: their AnB is this part beside `surgery.reinit_above` of the same depth, their AnB+ that surgery at depth 0 here.
Frozen weights get no penalty either, and frozen batch norms are in eval mode whatever the recipe's mode.
Cost: falls with depth, as frozen stages need no backward pass; fixed views of the frozen part are computed once.
"""

from collections.abc import Generator

from domain.space import IntRange
from transfer.phase import Outcome, Phase, Plan

SPACE = {"depth": IntRange(low=0, high=32, default=0)}
SEARCHED = True


def phases(plan: Plan, *, depth: int) -> Generator[Phase, Outcome, None]:
    frozen = plan.stages[:depth]
    yield Phase(trainable=tuple(unit for unit in plan.everything if unit not in frozen))
