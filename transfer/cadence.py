"""When a phase looks at val: often enough for a curve, seldom enough to cost little."""

import math

N_EVALUATIONS = 20  # of a trial at most, beside those where trials are compared,
EVALUATION_SHARE = 0.1  # and about this part of its time, but four of a phase at least


def evaluation_steps(n_steps: int, *, batch_size: int, n_train: int, n_val: int, n_fits: int) -> range:
    """Steps after which a phase of `n_steps` evaluates: ends of epochs, thinned out; within epochs where those are few.

    `n_fits` of a trial share its evaluations.
    """
    per_epoch = max(1, n_train // batch_size)
    # A step costs about three forward passes of its batch, an evaluation one of val.
    affordable = int(EVALUATION_SHARE * 3 * n_steps * batch_size / max(1, n_val))
    at_most = max(4, min(affordable, N_EVALUATIONS // n_fits))
    n_epochs = n_steps / per_epoch
    interval = per_epoch * math.ceil(n_epochs / at_most) if n_epochs >= 4 else math.ceil(n_steps / 4)
    return range(interval, n_steps + 1, interval)
