"""Training the trials of a lot. `fit` yields reports; pruning, saving, cancelling and telling happen outside it.

    running = fit(order, stopped=stopped)
    for report in running:              # a `Report` at every evaluation
        ...                             # running.save(folder) leaves a resume point of the reported trial
    running.outcome(trial_id)           # how it ended; files lie in order.scratch

`stopped(trial_id)` answers "go", "pause" or "stop" and is asked before every step; of heads that are trained
together the first is asked, every few steps. No part is known here by name.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domain.errors import GraftError
from domain.lot import LotOrder, TrialOrder
from domain.trial import Report, TrialOutcome
from models.weights import save_weights
from transfer import compiling, measures, memory, resume, warm
from transfer.fold import FoldRun, Logits, Sight, choose, measure
from transfer.pace import Keeping
from transfer.setting import Found, Halted, Setting

Stopped = Callable[[str], str]


class Fit:
    """The trials of a lot, trained one after another."""

    def __init__(self, order: LotOrder, *, stopped: Stopped) -> None:
        if torch.get_num_threads() != order.n_threads:
            torch.set_num_threads(order.n_threads)
        self._trials = {trial.trial_id: _Trial(order, trial, stopped) for trial in order.trials}
        self._active: _Trial | None = None

    def __iter__(self) -> Iterator[Report]:
        for trial_id in self._trials:
            yield from self.train(trial_id)

    def train(self, trial_id: str) -> Iterator[Report]:
        """One trial to its end; heads that are trained together are trained with the first of them."""
        self._active = self._trials[trial_id]
        yield from self._active.train()

    def save(self, folder: Path, trial_id: str | None = None) -> None:
        """A resume point of a trial, the one that reported last by default; after a report, or once it is paused."""
        resume.write(folder, *self.point(trial_id))

    def point(self, trial_id: str | None = None) -> resume.Point:
        """What `save` writes. The tensors are the trial's own: they change when it goes on."""
        trial = self._active if trial_id is None else self._trials[trial_id]
        if trial is None:
            raise RuntimeError("nothing has been trained yet")
        return trial.point()

    def let_go(self, trial_id: str) -> None:
        """A paused trial is saved and will not go on here: its network may serve the next one."""
        self._trials[trial_id].let_go()

    @property
    def n_steps(self) -> int | None:
        """Steps that the trial at work has taken in its present phase; None where it is not about to take any."""
        run = None if self._active is None else self._active.run
        return None if run is None or run.loop is None else run.loop.step

    def halved(self, trial_id: str) -> bool:
        """Whether memory was too short for a trial's whole batches."""
        return self._trials[trial_id].halved

    def outcome(self, trial_id: str) -> TrialOutcome:
        """How a trial ended."""
        return self._trials[trial_id].outcome()


def fit(order: LotOrder, *, stopped: Stopped) -> Fit:
    """Train the trials of a lot; iterate over the answer."""
    return Fit(order, stopped=stopped)


class _Trial:
    """One trial: a fit on train ranked on val, or K fits across folds and a closing one on train + val."""

    def __init__(self, order: LotOrder, trial: TrialOrder, stopped: Stopped) -> None:
        self.order, self.trial, self._stopped = order, trial, stopped
        self.state = "RUNNING"
        self.run: FoldRun | None = None
        self.fold = 0
        self.cost_s = 0.0
        self.value: float | None = None  # last one measured
        self.metrics: dict[str, float] = {}
        self.error: GraftError | None = None
        self.files: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self._found = Found()
        self.folds: list[dict[str, Any]] = []  # of the fits that are over: logits, candidates, choice
        self.peak_bytes = 0
        self.halved = False
        self._read: resume.Point | None = None  # what it began from, until its fit stands as it was there
        self._mark = 0.0

    def train(self) -> Iterator[Report]:
        self._mark = time.perf_counter()
        try:
            yield from self._train()
            self.state = "COMPLETE"
        except Halted as halted:
            self.state = "PAUSED" if halted.answer == "pause" else "PRUNED"
        except GraftError as error:
            self._fail(error)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_exhausted(error):
                raise
            warm.forget()  # what is kept for later trials may be what was in the way
            compiling.forget()
            self._fail(GraftError("out_of_memory", str(error).partition("\n")[0] or "out of memory"))
        finally:
            self._tick()
            self.peak_bytes = memory.peak_bytes(self.order.device)
            self.halved = self.run is not None and self.run.bench.n_splits > 1
        if self.state != "PAUSED":
            self.let_go()

    def let_go(self) -> None:
        if self.run is not None:
            self.run.setting.give_back(self.run.net)
            self.run = None

    def _train(self) -> Iterator[Report]:
        memory.forget_peak(self.order.device)
        self._read = self._read_resume_point()
        setting = Setting(self.order, self.trial, self._stopped, self._found)
        self._found = setting.found
        while self.fold < setting.n_fits:
            self.run = None  # until it stands: a trial that is paused before has nothing of this fit to save
            self.run = FoldRun(setting, self.fold, choice=self._pooled_choice(setting))
            if self._read is not None and self._read[0]["run"] is not None:
                self.run.restore(self._read[0]["run"], resume.below(self._read[1], "run"))
            self._read = None
            for sight in self.run.run():
                yield self._report(sight, setting.n_fits)
                self._mark = time.perf_counter()  # what the reader of a report does is not the trial's cost
            self._close_fold(setting, self.run)
        self._finish(setting)

    def _report(self, sight: Sight, n_fits: int) -> Report:
        self._tick()
        share = 1.0 if self.fold == n_fits - 1 and sight.share == 1 else (self.fold + sight.share) / n_fits
        if sight.value is not None:
            self.value = sight.value
        return Report(
            trial_id=self.trial.trial_id, fold=self.fold, phase=sight.phase, step=sight.step, share=share,
            value=sight.value, terms=sight.terms, cost_s=self.cost_s,
        )  # fmt: skip

    def _tick(self) -> None:
        now = time.perf_counter()
        self.cost_s += now - self._mark
        self._mark = now
        if self.run is not None:
            self.cost_s += self.run.bench.borrowed_s
            self.run.bench.borrowed_s = 0.0

    # --- folds

    def _close_fold(self, setting: Setting, run: FoldRun) -> None:
        closed = next((o.choice for o in run.outcomes if o.choice is not None), None)
        self.folds.append({"logits": run.logits, "candidates": run.candidates, "choice": closed})
        self.fold += 1
        self._found = setting.found
        self._remark(run)
        if self.fold < setting.n_fits:
            setting.give_back(run.net)

    def _remark(self, run: FoldRun) -> None:
        """Each sentence once, whichever fold says it."""
        known = self.facts.get("remarks", [])
        if new := [sentence for sentence in run.bench.remarks if sentence not in known]:
            self.facts["remarks"] = [*known, *new]

    def _pooled_choice(self, setting: Setting) -> int | None:
        """The strength that is best over all folds' held-out predictions together, for the closing fit."""
        if setting.n_fits == 1 or self.fold < setting.n_fits - 1:
            return None
        if (pooled := self._pooled_candidates()) is not None:
            return choose(setting, pooled, self._held_out(setting)[1])[0]
        chosen = [fold["choice"] for fold in self.folds if fold["choice"] is not None]
        return int(np.median(chosen)) if chosen else None

    def _pooled_candidates(self) -> Logits | None:
        """(S, n, C) predictions of every strength on what the folds held out; None where none ended in closed form."""
        candidates = [fold["candidates"] for fold in self.folds[: self.order.n_folds]]
        return None if any(c is None for c in candidates) else np.concatenate(candidates, axis=1)

    def _held_out(self, setting: Setting) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Items that some fit was ranked on, fold after fold, and their targets."""
        rows = np.concatenate([setting.items(fold)[1] for fold in range(self.order.n_folds)])
        return rows, setting.problem.labels[rows]

    # --- the end

    def _finish(self, setting: Setting) -> None:
        """Pool the predictions, write the checkpoint and the predictions on val."""
        rows, targets = self._held_out(setting)
        logits = np.concatenate([fold["logits"] for fold in self.folds[: self.order.n_folds]])
        if setting.n_fits > 1 and (pooled := self._pooled_candidates()) is not None:
            logits = pooled[choose(setting, pooled, targets)[0]]
        self.value, metrics = measure(setting, logits, targets)
        self.metrics = dict(metrics)
        folder = Path(self.order.scratch) / self.trial.trial_id
        folder.mkdir(parents=True, exist_ok=True)
        if self.run is None:
            raise RuntimeError("a trial without a fit")
        facts = {"backbone": self.trial.recipe.backbone}
        save_weights(self.run.weights(), folder / "weights.safetensors", facts, durable=False)
        np.savez(folder / "predictions.npz", logits=logits, targets=targets, rows=rows)
        self.metrics |= measures.of_network(setting, folder / "weights.safetensors", self.run.bench.source_head)
        self.files = {"weights": str(folder / "weights.safetensors"), "predictions": str(folder / "predictions.npz")}
        self.facts |= {"n_val": len(rows), "precision": setting.precision}
        if setting.mode != "eager":
            self.facts["stages"] = setting.mode
        self.facts["phases"] = [outcome.to_json() for outcome in self.run.outcomes]

    def _fail(self, error: GraftError) -> None:
        self.state, self.error, self.value = "FAILED", error, None  # what it was worth on the way is no score

    def outcome(self) -> TrialOutcome:
        value = self.value if self.value is not None and math.isfinite(self.value) else None
        return TrialOutcome(
            trial_id=self.trial.trial_id, state=self.state, value=value, metrics=self.metrics, cost_s=self.cost_s,
            peak_bytes=self.peak_bytes, error_code=self.error.code if self.error else None,
            error=self.error.detail if self.error else None, files=self.files, facts=self.facts,
        )  # fmt: skip

    # --- interruption

    def point(self) -> resume.Point:
        run = self.run
        if run is None and self.state != "PAUSED":
            raise RuntimeError("a resume point can be saved after a report or a pause, not before or after the trial")
        if self._read is not None:  # paused again while it prepared: what it began from is as far as it came
            return self._read[0] | {"cost_s": self.cost_s}, self._read[1]
        if run is not None:
            self._remark(run)
        tensors = {} if run is None else {f"run/{name}": tensor for name, tensor in run.tensors().items()}
        for place, fold in enumerate(self.folds):
            for kind in ("logits", "candidates"):
                if fold[kind] is not None:
                    tensors[f"fold/{place}/{kind}"] = torch.from_numpy(fold[kind])
        found = self._found if run is None else run.setting.found
        facts = {
            "fingerprint": resume.fingerprint(self.order, self.trial), "fold": self.fold, "cost_s": self.cost_s,
            "value": self.value, "choices": [fold["choice"] for fold in self.folds],
            "run": None if run is None else run.facts(), "precision": found.precision, "mode": found.mode,
            "channels_last": found.channels_last, "keeping": list(found.keeping.items()),
            "remarks": self.facts.get("remarks", []),
        }  # fmt: skip
        return facts, tensors

    def _read_resume_point(self) -> resume.Point | None:
        if self.trial.resume is None:
            return None
        saved = resume.read(Path(self.trial.resume), resume.fingerprint(self.order, self.trial))
        self.facts["resumed"] = saved is not None
        if saved is None:
            return None
        facts, tensors = saved
        self.fold, self.cost_s, self.value = facts["fold"], facts["cost_s"], facts["value"]
        self._found = Found(
            facts["precision"], facts.get("mode"), facts.get("channels_last"),
            {depth: Keeping(*seconds) for depth, seconds in facts.get("keeping", [])},
        )  # fmt: skip
        if facts["remarks"]:
            self.facts["remarks"] = facts["remarks"]
        for place, choice in enumerate(facts["choices"]):
            found = resume.below(tensors, f"fold/{place}")
            self.folds.append({
                "choice": choice,
                **{k: found[k].numpy() if k in found else None for k in ("logits", "candidates")},
            })  # fmt: skip
        return saved
