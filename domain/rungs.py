"""Where on its way a trial is compared with others: the search decides there, and a trial is evaluated there.

Shares of a trial's budget lie on one grid, so that trials of other lengths can be compared. Successive halving with
reduction factor eta looks at 1 / eta^2 and 1 / eta of the budget, on the grid.
"""

import math

GRID = 60  # points on (0, 1]; fits of one to five folds and a closing one all end on a point
ETA = 3
RUNGS = tuple(math.ceil(GRID / ETA**k) for k in (2, 1))
COARSEST = 2 / GRID  # by which an evaluation may come late and still count as one at the rung


def steps_at_rungs(n_steps: int, *, fit: int, n_fits: int) -> dict[int, float]:
    """The steps of one fit of a trial that reach a rung, with the share of the fit that each of them stands for.

    Where steps are few, none may come near enough to a rung.
    """
    shares = [rung / GRID * n_fits - fit for rung in RUNGS]
    steps = {math.ceil(share * n_steps - 1e-9): share for share in shares if 0 < share < 1}
    return {step: share for step, share in steps.items() if (step / n_steps - share) / n_fits < COARSEST}
