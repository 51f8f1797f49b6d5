"""Gradual unfreezing: the head first, then one more unit per phase from the output side; nothing is frozen again.

Units u_1 .. u_L, input side first: the stages, or with `unit` block the stem and the parts that the other stages are
made of. N is the head and whatever else has no start. Trained are, phase by phase,

    N;  N u_L;  N u_L u_(L-1);  ...;  N u_L .. u_2;  everything

The first L phases divide `share` of the steps equally, the last has the rest. Each begins where the one before ended
(val chooses the best at the very end alone), with a new optimizer and a learning-rate curve of its own; rates come from
the recipe, so that `optimizer.stage_decay` below 1 gives the discriminative rates of the paper. Units not yet thawed
keep every bit, batch-norm statistics included. Without weights of a source in a unit (drawn anew by surgery) the unit
belongs to N. Howard & Ruder 2018 (ULMFiT), arXiv:1801.06146, spend one epoch per phase.
Cost: below fine-tuning, as frozen units need no backward pass; an evaluation on val or more per phase.
"""

from collections.abc import Generator

from domain.space import Choice, FloatRange
from transfer.phase import Outcome, Phase, Plan
from transfer.units import novel, units

NEEDS = ("start",)
SPACE = {
    "unit": Choice(options=("stage", "block"), default="stage"),
    "share": FloatRange(low=0.1, high=0.9, default=0.5),
}


def phases(plan: Plan, *, unit: str, share: float) -> Generator[Phase, Outcome, None]:
    frozen = units(plan, unit)
    for place in range(len(frozen), 0, -1):
        thawed = (*frozen[place:], *novel(plan))
        yield Phase(trainable=thawed, share=share / len(frozen), keep="last")
    yield Phase(trainable=plan.everything)
