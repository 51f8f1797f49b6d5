"""A worker of the distributed form whose trials sleep: everything around a trial is real, from the broker to the rows.

python -m benchmarks.sleeper SECONDS
"""

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import worker.context
from domain.lot import LotOrder, TrialOrder
from domain.trial import Report, TrialOutcome
from store.settings import Settings
from worker.wire import Done, Ended, FirstStep, FromChild, Message, ProbeLot, Reported, RunLot, Wish

SLEEP_S = float(sys.argv.pop(1)) if __name__ == "__main__" else 1.0
FACTS: dict[str, str | int | float | bool] = {
    "device": "cpu", "device_name": "none", "precision": "float32", "n_threads": 1, "memory_bytes": 1 << 34,
}  # fmt: skip


class SleepingCrew:
    """In place of `worker.crew.Crew`: says of every trial, after a while, that it is complete."""

    def __init__(self, _: Settings) -> None:
        self.facts = FACTS
        self.pid = None
        self._cancelled: set[str] = set()

    def start(self) -> dict[str, str | int | float | bool]:
        return self.facts

    def stop(self) -> None:
        pass

    def wish(self, trial_id: str, wish: Wish) -> None:
        if wish != "go":
            self._cancelled.add(trial_id)

    @contextmanager
    def order(self, message: Message, *, timeout_s: float) -> Iterator[Iterator[FromChild | None]]:
        if isinstance(message, RunLot):
            yield self._trials(message.order, timeout_s)
        elif isinstance(message, ProbeLot):
            yield iter([Done(body=_probed(message.order))])
        else:
            raise NotImplementedError("a simulated job is cancelled, not finished")

    def _trials(self, order: LotOrder, timeout_s: float) -> Iterator[FromChild | None]:
        for trial in order.trials:
            until = time.monotonic() + SLEEP_S  # from here: what the worker does on hearing of it takes no trial's time
            yield FirstStep(trial_id=trial.trial_id, at=time.time())
            while time.monotonic() < until and trial.trial_id not in self._cancelled:
                time.sleep(min(timeout_s, max(0.0, until - time.monotonic())))
                yield None
            yield from _ended(order, trial, cancelled=trial.trial_id in self._cancelled)
        yield Done(body={})


def _ended(order: LotOrder, trial: TrialOrder, *, cancelled: bool) -> Iterator[FromChild]:
    value = random.random()
    yield Reported(
        report=Report(
            trial_id=trial.trial_id, fold=0, phase=0, step=trial.recipe.steps, share=1.0, value=value, cost_s=SLEEP_S
        )
    )
    files = {}
    if not cancelled:
        folder = Path(order.scratch) / trial.trial_id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights.safetensors").write_bytes(bytes(4096))
        np.savez(folder / "predictions.npz", logits=np.zeros((8, 2), np.float32))
        files = {"weights": str(folder / "weights.safetensors"), "predictions": str(folder / "predictions.npz")}
    state = "PRUNED" if cancelled else "COMPLETE"
    yield Ended(outcome=TrialOutcome(trial_id=trial.trial_id, state=state, value=value, cost_s=SLEEP_S, files=files))


def _probed(order: LotOrder) -> dict[str, object]:
    n = len(order.trials)
    each = {"s_per_step": SLEEP_S / order.trials[0].recipe.steps, "prepare_s": 0.0, "base_bytes": 0, "peak_bytes": 1}
    return {
        "trials": [{"source": trial.recipe.source, **each} for trial in order.trials], "s_per_item": [0.0] * n,
        "weights_bytes": [4096] * n, "export_s": 0.0, "s_per_item_exported": 0.0,
    }  # fmt: skip


if __name__ == "__main__":
    worker.context.Crew = SleepingCrew  # type: ignore[attr-defined,assignment]
    from worker.app import serve

    serve(["trials"])
