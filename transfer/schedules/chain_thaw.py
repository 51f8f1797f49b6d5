"""Chain-thaw: the head alone, then every unit alone from first to last, then everything.

Units u_1 .. u_L, input side first: the stages, or with `unit` block the stem and the parts that the other stages are
made of. N is the head and whatever else has no start. Trained are, phase by phase,

    N;  u_1;  u_2;  ...;  u_L;  everything

In the phases in between all others, the head included, are frozen and their batch norms in eval mode. (It is not
gradual unfreezing: a unit is frozen again after its turn.) Every phase has a new optimizer and a constant learning
rate, ends after `patience` evaluations on val without a better one, and leaves the best evaluation seen so far, in
whichever phase: a phase that never improves is rolled back. Each has the same part of the steps. Without weights of a
source in a unit (drawn anew by surgery) the unit belongs to N. Felbo et al. 2017 (DeepMoji), arXiv:1708.00524. Their
code has Adam, 1e-3 for the head alone and 1e-4 in all later phases, and takes the lowest loss on val; here rates are
the recipe's (in the last phase the head's own rate, not the others'), and the job's objective says what is best, the
log-loss among equals. A fit without val (the closing one on train and val) spends all its steps and rolls nothing back.
Cost: at most that of fine-tuning per step; two phases more than there are units, four evaluations on val in each.
"""

from collections.abc import Generator

from domain.space import Choice, IntRange
from transfer.optimizers import constant
from transfer.phase import Outcome, Phase, Plan
from transfer.units import novel, units

NEEDS = ("start",)
SPACE = {
    "unit": Choice(options=("stage", "block"), default="stage"),
    "patience": IntRange(low=2, high=5, default=5),
}


def phases(plan: Plan, *, unit: str, patience: int) -> Generator[Phase, Outcome, None]:
    turns = [novel(plan), *((name,) for name in units(plan, unit)), plan.everything]
    for place, trainable in enumerate(turns):
        share = None if place == len(turns) - 1 else 1 / len(turns)
        yield Phase(trainable=trainable, begin="best", share=share, patience=patience, rate=constant)
