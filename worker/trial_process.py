"""The trial process: receives orders over a pipe, trains, tells. No database, no broker, no credentials.

`python -m worker.trial_process FD` is started by `worker.crew`. It ends as soon as the parent's end of the pipe closes,
however the parent died.
"""

import argparse
import gc
import logging
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domain.errors import GraftError
from domain.lot import LotOrder, TrialOrder
from models.weights import torchvision_file
from transfer import resume
from transfer.finish import finish
from transfer.fit import Fit
from transfer.memory import held_bytes, is_exhausted
from transfer.rehearsal import export_s, look_s
from transfer.setting import Setting
from worker.machine import describe_machine, threads
from worker.ranking import examined
from worker.wear import Wear
from worker.wire import (
    Alive,
    Done,
    Ended,
    Finish,
    FirstStep,
    Hello,
    Message,
    ProbeLot,
    Refused,
    Reported,
    Resumable,
    RunLot,
    Wish,
    Wishes,
    receive_order,
    send,
)  # fmt: skip

log = logging.getLogger(__name__)

ALIVE_EVERY_S = 60.0


class Line:
    """The pipe to the parent. A thread reads it, so that a wish is known at the very next step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._sent_at = time.monotonic()
        self.orders: queue.SimpleQueue[RunLot | ProbeLot | Finish] = queue.SimpleQueue()
        self.wishes: dict[str, Wish] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, message: Message) -> None:
        try:
            with self._sending:
                send(self._connection, message)
        except OSError:
            os._exit(0)  # the parent is gone: nobody wants this work
        self._sent_at = time.monotonic()

    def alive(self) -> None:
        """Said by whatever works on an order, as often as it likes."""
        if time.monotonic() - self._sent_at >= ALIVE_EVERY_S:
            self.send(Alive())

    def _listen(self) -> None:
        while True:
            try:
                message = receive_order(self._connection)
            except (EOFError, OSError):
                os._exit(0)
            if isinstance(message, Wishes):
                self.wishes[message.trial_id] = message.wish
            else:
                self.wishes.clear()  # those that came too late for the order before
                self.orders.put(message)


def serve(line: Line, weights_dir: Path | None, wear: Wear) -> None:
    while True:
        message = line.orders.get()
        try:
            if isinstance(message, RunLot):
                run_lot(line, _with_weights(message.order, weights_dir), message.resume_every_s)
                body: dict[str, object] = {}
            elif isinstance(message, ProbeLot):
                order = _with_weights(message.order, weights_dir)
                body = {
                    **probe(line, order, message.n_steps, message.limit_s), **examined(order, message.ranked),
                    **rehearse(order, export=message.export),
                }  # fmt: skip
            else:
                body = finish(message.order, line.alive).model_dump(mode="json")
        except GraftError as error:
            line.send(Refused(code=error.code, detail=error.detail, worn=wear.is_worn()))
        except torch.cuda.OutOfMemoryError as error:
            line.send(Refused(code="out_of_memory", detail=str(error), worn=wear.is_worn()))
        except Exception as error:  # a fault of ours: say what it was, and leave a clean process behind
            log.exception("an order broke")
            line.send(Refused(code="crashed", detail=f"{type(error).__name__}: {error}"))
            os._exit(1)
        else:
            line.send(Done(body=body, worn=wear.is_worn()))
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


def run_lot(line: Line, order: LotOrder, resume_every_s: float) -> None:
    """Train the lot, telling every report; save a resume point at most every `resume_every_s` and at a pause."""
    scratch = Path(order.scratch)
    unstarted = {t.trial_id for t in order.trials}
    saved_at = time.monotonic()
    n_saved = 0

    def stopped(trial_id: str) -> str:
        if trial_id in unstarted:  # asked for the first time: the first optimizer step is next
            unstarted.discard(trial_id)
            line.send(FirstStep(trial_id=trial_id, at=time.time()))
        line.alive()
        wish = line.wishes.get(trial_id, "go")
        return "stop" if wish == "cancel" else wish

    fit, saver = Fit(order, stopped=stopped), Saver(line.send)
    for trial in order.trials:
        if line.wishes.get(trial.trial_id) == "pause":
            continue  # it has not begun: the lot goes back, and it begins elsewhere
        for report in fit.train(trial.trial_id):
            line.send(Reported(report=report))
            if report.share < 1.0 and saver.idle and time.monotonic() - saved_at >= resume_every_s:
                n_saved, saved_at = n_saved + 1, time.monotonic()
                try:
                    saver.save(fit.point(), trial.trial_id, scratch / f"resume-{trial.trial_id}-{n_saved}")
                except (RuntimeError, MemoryError) as error:
                    if not is_exhausted(error):
                        raise
                    log.warning("no room for a resume point of %s", trial.trial_id)  # it is trained all the same
        saver.settle()
        outcome = fit.outcome(trial.trial_id)
        if outcome.state == "PAUSED":
            saver.save(fit.point(trial.trial_id), trial.trial_id, scratch / f"resume-{trial.trial_id}-last")
            fit.let_go(trial.trial_id)
            saver.settle()
        line.send(Ended(outcome=outcome))


class Saver:
    """Writes resume points in a thread while the next steps are taken: a step waits for a copy in memory alone."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell, self._thread = tell, ThreadPoolExecutor(1)
        self._written: Future[None] | None = None

    @property
    def idle(self) -> bool:
        return self._written is None or self._written.done()

    def save(self, point: resume.Point, trial_id: str, folder: Path) -> None:
        self.settle()
        facts, tensors = point
        as_now = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        self._written = self._thread.submit(self._write, facts, as_now, trial_id, folder)

    def settle(self) -> None:
        """Wait until everything is written and told; raises what went wrong."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def _write(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], trial_id: str, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        resume.write(folder, facts, tensors)
        self._tell(Resumable(trial_id=trial_id, folder=str(folder)))


def probe(line: Line, order: LotOrder, n_steps: int, limit_s: float | None = None) -> dict[str, object]:
    """Seconds per step and of preparing, and memory, of each trial of `order`, from a few real steps."""
    return {"trials": [_probe_one(line, order, trial, n_steps, limit_s) for trial in order.trials]}


def _probe_one(
    line: Line, order: LotOrder, trial: TrialOrder, n_steps: int, limit_s: float | None
) -> dict[str, object]:
    marks: list[float] = []

    def stopped(_: str) -> str:
        line.alive()
        now = time.perf_counter()
        if fit.n_steps == len(marks):  # a step is next; who asks in the middle of something else does not count
            marks.append(now)
        late = not marks and limit_s is not None and now - began > limit_s
        return "stop" if late or len(marks) > n_steps else "go"

    Setting(order, trial, lambda _: "go")  # what is found out once per machine is no part of what a trial takes
    base_bytes = held_bytes(order.device)
    began = time.perf_counter()
    fit = Fit(order.model_copy(update={"trials": (trial,)}), stopped=stopped)
    for _ in fit:
        pass
    ended = time.perf_counter()
    outcome = fit.outcome(trial.trial_id)
    if fit.halved(trial.trial_id):  # a trial may have to live with that; a job looks for batches that fit
        raise GraftError("out_of_memory", f"a step with batches of {trial.recipe.data.batch_size} does not fit")
    if outcome.state == "FAILED":
        raise GraftError(outcome.error_code or "probe_failed", outcome.error or "the probe failed")
    intervals = [b - a for a, b in pairwise(marks)]
    steps = intervals[1:] or intervals  # the first holds allocation and autotuning
    return {
        "source": trial.recipe.source, "s_per_step": sorted(steps)[len(steps) // 2] if steps else 0.0,
        "prepare_s": (marks[0] if steps else ended) - began, "base_bytes": base_bytes, "peak_bytes": outcome.peak_bytes,
    }  # fmt: skip


def rehearse(order: LotOrder, *, export: bool) -> dict[str, object]:
    """What the end of the job is made of: evaluating with each trial's network, and exporting the largest of them."""
    looks = [look_s(order, trial) for trial in order.trials]
    found: dict[str, object] = {"s_per_item": [s for s, _ in looks], "weights_bytes": [n for _, n in looks]}
    if export:
        found["export_s"], found["s_per_item_exported"] = export_s(order, order.trials)
    return found


def _with_weights(order: LotOrder, weights_dir: Path | None) -> LotOrder:
    """Replace `torchvision:<backbone>` by the file that holds those weights."""

    def located(trial: TrialOrder) -> TrialOrder:
        weights = trial.source.weights
        if weights is None or not weights.startswith("torchvision:"):
            return trial
        path = torchvision_file(weights.partition(":")[2], weights_dir)
        return trial.model_copy(update={"source": trial.source.model_copy(update={"weights": str(path)})})

    return order.model_copy(update={"trials": tuple(located(t) for t in order.trials)})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("fd", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--most-threads", type=int, default=1)
    parser.add_argument("--paces", type=Path)
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--memory-bytes", type=int)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    facts = describe_machine(arguments.device, arguments.precision, arguments.threads, arguments.memory_bytes)
    if arguments.threads == 0 and facts["device"] == "cpu":
        facts["n_threads"] = threads(arguments.most_threads, arguments.paces)
    torch.set_num_threads(int(facts["n_threads"]))
    line = Line(Connection(arguments.fd))
    line.send(Hello(facts=facts))
    serve(line, arguments.weights_dir, Wear(str(facts["device"]), int(facts["memory_bytes"])))


if __name__ == "__main__":
    main()
