"""The training views of a phase, batch after batch: what comes next is known, and is made ready meanwhile.

What view an item gets does not depend on when it is cut, so a trial has the same bits with and without. On an
accelerator, and where a trial may use several threads, a thread cuts the next batch while this one trains. A trial of
one thread has no core to spare for that: there the system is told which pictures to read from the disk.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from torch import Tensor

from transfer.memory import is_exhausted
from transfer.setting import Setting
from transfer.views import Items

THREAD = ThreadPoolExecutor(1, thread_name_prefix="prefetch")


class Ready(NamedTuple):
    """A batch that is being cut, or has been."""

    items: Items
    epoch: int
    inputs: Future[Tensor]


class Views:
    def __init__(self, setting: Setting, seed: int) -> None:
        self._problem, self._data, self._seed = setting.problem, setting.recipe.data, seed
        self._in_thread = setting.order.prefetch
        self._ready: Ready | None = None

    def take(self, items: Items, epoch: int, coming: Items) -> Tensor:
        """The inputs of `items` in this epoch; `coming` are the items that will probably be asked for next."""
        inputs = self._foreseen(items, epoch)
        if inputs is None:
            inputs = self._cut(items, epoch)
        if len(coming) and self._in_thread:
            self._ready = Ready(coming, epoch, THREAD.submit(self._cut, coming, epoch))
        elif len(coming):
            self._problem.announce(coming)
        return inputs

    def _foreseen(self, items: Items, epoch: int) -> Tensor | None:
        """What the thread has cut, if it is this."""
        ready, self._ready = self._ready, None
        if ready is None:
            return None
        if ready.epoch != epoch or not np.array_equal(ready.items, items):
            ready.inputs.cancel()
            return None
        try:
            return ready.inputs.result()
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
            return None  # beside a step; between two there may be room

    def _cut(self, items: Items, epoch: int) -> Tensor:
        inputs: Tensor = self._problem.training_inputs(items, self._seed, epoch, self._data)
        return inputs
