"""The training loop of one phase: views, losses, gradient, update. It yields where it evaluates; everything else, from
reporting to pruning and saving, happens outside.

Whatever is random is a function of (seed, phase, epoch or step), never of how often something was drawn: that, the
tensors of `tensors()` and the counters of `facts()` are all that an interrupted phase needs to go on to the same bits,
and to rounding where heads were trained together before.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from domain.errors import GraftError
from models.network import Seen
from transfer import compiling, memory
from transfer.accumulate import gradient
from transfer.bench import Bench, Drawn, Pools
from transfer.cadence import evaluation_steps
from transfer.parts import BoundPart
from transfer.phase import Phase
from transfer.prefetch import Views
from transfer.prefix import Kept, pays
from transfer.resume import below
from transfer.step import PartState, Step, View, swapped
from transfer.trainee import Trainee
from transfer.views import Items

CHECK_EVERY_ON_DEVICE = 20  # steps between looks at the loss where a look waits for the device


class Diverged(GraftError):
    """A loss or a prediction is not finite any more."""


class Snapshot(NamedTuple):
    """What a phase has come to after so many steps."""

    step: int
    epoch: int
    batch: int
    weights: dict[str, Tensor]
    velocity: dict[str, Tensor]  # of the optimizer, by weight
    sums: dict[str, Tensor]  # of every term since the snapshot before


class Loop:
    """One phase solved by gradient descent."""

    def __init__(
        self, bench: Bench, phase: Phase, index: int, n_steps: int, *, evaluated_at: Collection[int] = ()
    ) -> None:
        """`evaluated_at` are steps after which it is evaluated besides those that it chooses itself."""
        self.bench, self.phase, self.index, self.n_steps = bench, phase, index, n_steps
        self.setting, self.net, self.recipe = bench.setting, bench.net, bench.recipe
        self.step, self.epoch, self.batch = 0, 0, 0  # `batch` counts within the epoch
        self.seed = self.setting.seed(bench.fold, 1 + index)
        self.states = {part.key: PartState() for part in bench.parts if part.says("after_step")}
        self._after = [(part, self.states[part.key]) for part in bench.parts if part.says("after_step")]
        self._losses = [p for p in bench.parts if p.says("loss") and p.slot != "distillation"]
        self._distillations = [p for p in bench.parts if p.says("loss") and p.slot == "distillation"]
        self._needs_taps = any("taps" in part.needs or part.flag("CONV_TAPS") for part in bench.parts)
        self._wants_input_gradient = any(part.flag("INPUT_GRADIENT") for part in bench.parts)
        self._draw = next((part for part in bench.parts if part.says("draw")), None)
        self.n_bad = 0  # evaluations since the best one
        self._sums: dict[str, Tensor] = {}
        self._n_summed = 0
        self._drawn, self._opened = Drawn(bench.train), False  # the items of the present epoch, and if it has any yet
        self._views = Views(self.setting, self.seed)
        self._draw_state: dict[str, Tensor] = {}
        self.trainee = Trainee(bench, phase)
        self.weights, self.optimizer = self.trainee.weights, self.trainee.optimizer()
        self.kept = self._keep()  # what is read instead of computed
        self.chosen = frozenset(evaluation_steps(
            n_steps, batch_size=self.recipe.data.batch_size, n_train=len(bench.train), n_val=len(bench.val),
            n_fits=self.setting.n_fits,
        ))  # fmt: skip
        self.evaluations = self.chosen | frozenset(evaluated_at)

    # --- set-up

    def _keep(self) -> Kept | None:
        """The activations of the frozen stages, where they cannot change: of val, and of the phase's own looks where
        that pays."""
        depth, setting = self.trainee.depth, self.setting
        if depth == 0 or self._wants_input_gradient or self._needs_taps or self.bench.whole:
            return None
        # Who looks at the inputs themselves needs them: teachers, a previous generation among them, and source heads.
        looks_back = self.phase.teacher == "previous" or any(
            part.needs & {"teacher", "source_head"} for part in self.bench.parts
            if part.slot != "regularizer"  # a penalty looks at weights alone
        )  # fmt: skip
        n_looks = 0 if self._mixup or looks_back else setting.task.n_looks(self.recipe.data)
        n_shown = self.n_steps * self.recipe.data.batch_size
        kept = Kept(
            setting, self.net, depth, untouched=not self.bench.touched(depth),
            looks=pays(setting, self.net, depth, n_shown=n_shown, n_items=len(self.bench.train), n_looks=n_looks),
        )  # fmt: skip
        readable = kept.filled(None, self.bench.val if len(self.bench.val) else self.bench.train[:1])
        return None if readable is None else kept

    @property
    def _mixup(self) -> float:
        return self.recipe.data.mixup_alpha if self.phase.mixup_alpha is None else self.phase.mixup_alpha

    @property
    def follows_the_task(self) -> bool:
        """Whether this phase trains what val is measured by: others leave a head that knows nothing yet."""
        taught = self._distillations if self.phase.teacher != "none" else []
        terms = [("task", ""), *((part.name, part.slot) for part in taught)]
        return any(self.phase.weight(term, at, slot) > 0 for at in (0.0, 1.0) for term, slot in terms)

    # --- the loop

    def train(self) -> Iterator[None]:
        """Take the remaining steps; yields after each one at which the network should be evaluated."""
        self.begin()
        while self.step < self.n_steps:
            self.bench.ask()
            if self.batch == self._n_batches:
                self.epoch, self.batch = self.epoch + 1, 0
                self._open_epoch()
            self._train_step(self.recipe.optimizer.warmup_frac)
            self.batch += 1
            self.step += 1
            if self.step in self.evaluations or self.step == self.n_steps:
                yield

    def begin(self) -> None:
        """Draw the items of the first epoch, if that has not been done."""
        if not self._opened:
            self._open_epoch()

    def become(self, snapshot: Snapshot) -> None:
        """Stand where another has trained this phase to."""
        self._n_summed += snapshot.step - self.step
        self.step, self.epoch = snapshot.step, snapshot.epoch
        self._open_epoch()
        self.batch, self._sums = snapshot.batch, dict(snapshot.sums)
        with torch.no_grad():
            for name, value in snapshot.weights.items():
                self.weights[name].copy_(value)
        self.optimizer.restore({f"velocity/{name}": value for name, value in snapshot.velocity.items()})
        self.check()

    def _train_step(self, warmup_frac: float) -> None:
        compiling.begin_step(self.setting.mode)
        self._differentiate()
        factor = self.phase.rate(self.step, self.n_steps, warmup_frac)
        self.optimizer.step(factor)
        if self._after:
            rates = self.optimizer.rates(factor)
            with torch.no_grad():
                for part, state in self._after:
                    state.progress = self.step / self.n_steps
                    part.call("after_step", self.weights, self.bench.start, rates, state)
        if self.setting.device.type == "cpu" or self.step % CHECK_EVERY_ON_DEVICE == 0:
            self.check()

    def _differentiate(self) -> None:
        """Leave the gradient of this step with the weights, and add up its terms."""
        size = self.recipe.data.batch_size
        batch = slice(self.batch * size, min((self.batch + 1) * size, len(self._drawn.items)))
        terms = gradient(
            self.bench, batch, lambda part: self._total(self._step(part)), self.weights.values(),
            seed=(self.seed + self.step) & (2**63 - 1) if self.trainee.draws else None,
        )  # fmt: skip
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._n_summed += 1

    def _step(self, window: slice | None = None) -> Step:
        """What the losses look at: a part of this step's items, or all of them."""
        problem, size = self.setting.problem, self.recipe.data.batch_size
        window = window or slice(self.batch * size, (self.batch + 1) * size)
        items = self._drawn.items[window]
        if self.kept is not None and self.kept.shown is not None:
            inputs, depth = self.kept.shown.read(items), self.kept.depth
        else:
            inputs, depth = self._views.take(items, self.epoch, self._coming(window)), 0
        targets = problem.targets(items)
        if self._mixup > 0:
            drawn = np.random.default_rng((self.seed, self.step)).beta(self._mixup, self._mixup, len(items))
            shares = torch.from_numpy(drawn).to(self.setting.device, torch.float32)
            inputs, targets = self.setting.task.mix(inputs, targets, shares, problem.n_classes)
        if self._wants_input_gradient:
            inputs.requires_grad_(True)
        return Step(
            inputs=inputs, targets=targets, weights=self.weights, progress=self.step / self.n_steps,
            seed=(self.seed, self.step, 1), prepared=self.bench.prepared, net=self.net,
            student=View(lambda x: self._student(x, depth), inputs, attached=True),
            look=lambda x: View(lambda y: self._student(y, 0), x, attached=True),
            source=lambda: View(self.bench.look_source, inputs, attached=False),
            teacher=lambda: View(self.bench.look_teacher, inputs, attached=False),
            task_loss=self._task_loss, source_batch=self._source_batch(window),
        )  # fmt: skip

    def _coming(self, window: slice) -> Items:
        """The items of the next batch of this epoch: the next epoch is drawn when this one is over. Nothing is made
        ready where memory was too short for whole batches."""
        size = self.recipe.data.batch_size if self.bench.n_splits == 1 else 0
        return self._drawn.items[window.stop : min(window.stop + size, self._n_batches * self.recipe.data.batch_size)]

    def _source_batch(self, window: slice) -> Callable[[], tuple[Tensor, Tensor]] | None:
        """Views of the rows of the source dataset that were drawn beside these items."""
        rows, data = self._drawn.source, self.bench.source_data
        if rows is None or data is None:
            return None
        chosen, seed = rows[window], (self.seed + 1) & (2**64 - 1)
        return lambda: data.training_batch(chosen, seed, self.epoch, self.recipe.data)

    def _student(self, inputs: Tensor, depth: int) -> Seen:
        with self.setting.autocast():
            seen = self._compiled(inputs, depth) if self.setting.mode != "eager" else None
            if seen is None:
                seen = self.net.look(inputs, depth, convs=self.setting.conv_taps)
        return seen._replace(logits=seen.logits.float())

    def _compiled(self, inputs: Tensor, depth: int) -> Seen | None:
        """None where these stages, unlike those of the probe's step, cannot be compiled: so it stays."""
        try:
            return self.net.look(inputs, depth, stages=compiling.stages(self.net, self.setting.mode))
        except Exception as error:
            if memory.is_exhausted(error):
                raise
            self.setting.mode = "eager"
            self.bench.remark(f"Stages could not be compiled: {type(error).__name__}.")
            return None

    def _task_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.setting.task.loss(logits, targets, label_smoothing=self.recipe.data.label_smoothing)
        return loss

    def _total(self, step: Step) -> tuple[Tensor, list[tuple[str, Tensor]]]:
        """The loss of a step and its terms: a distillation's in place of the task's, and those of all other parts."""
        found: list[tuple[str, Tensor]] = []
        for part in self._distillations:
            if self.phase.teacher != "none" and (weight := self._weight(part, step)) > 0:
                found.append((part.name, weight * part.call("loss", step)))
        if not found and (weight := self.phase.weight("task", step.progress)) > 0:
            found.append(("task", step.task_loss if weight == 1 else weight * step.task_loss))
        for part in self._losses:
            if (weight := self._weight(part, step)) > 0:
                loss = part.call("loss", step)
                found.append((part.name, loss if weight == 1 else weight * loss))
        return sum((value.to(self.setting.device) for _, value in found[1:]), start=found[0][1]), found

    def _weight(self, part: BoundPart, step: Step) -> float:
        return self.phase.weight(part.name, step.progress, part.slot) if self.phase.terms else 1.0

    # --- epochs

    def _open_epoch(self) -> None:
        self._opened = True
        rng = np.random.default_rng((self.seed, self.epoch, 2))
        if self._draw is None:
            self._drawn = Drawn(rng.permutation(self.bench.train))
        else:
            outcome = self.bench.outcomes[-1] if self.bench.outcomes else None
            self._drawn = self._draw.call("draw", self._pools(), outcome, rng)
        self._show()

    def _show(self) -> None:
        """Have the looks of this epoch's items ready, where they are kept."""
        if self.kept is not None and self.kept.looks:
            self.kept.show(self.setting.task.view_of(self.seed, self.epoch, self.recipe.data), self._drawn.items)

    @property
    def _n_batches(self) -> int:
        # What is left over at the end of an epoch is dropped: a batch of two spoils batch norm. It comes again.
        return max(1, len(self._drawn.items) // self.recipe.data.batch_size)

    def _pools(self) -> Pools:
        bench = self.bench
        return Pools(
            bench.train, bench.train_labels, bench.prepared, self.index,
            n_source=0 if bench.source_data is None else len(bench.source_data.items),
            predict=lambda: self._predict(bench.train, None), state=self._draw_state,
        )  # fmt: skip

    # --- looking at it

    def check(self) -> None:
        """Diverged as soon as any term is not finite."""
        for name, total in self._sums.items():
            if not math.isfinite(total.item()):
                raise Diverged(
                    "diverged", f"the {name} loss is {total.item()} in epoch {self.epoch + 1} (step {self.step + 1} of "
                    f"{self.n_steps}, fold {self.bench.fold}); lower learning rates or clip the gradient",
                    epoch=self.epoch + 1, term=name,
                )  # fmt: skip

    def means(self) -> dict[str, float]:
        """Mean of every term since the last time this was asked."""
        self.check()
        found = {name: total.item() / max(1, self._n_summed) for name, total in self._sums.items()}
        self._sums, self._n_summed = {}, 0
        return found

    def predict(self, items: Items) -> NDArray[np.float32]:
        """Logits (N, C), in eval mode, averaged weights in place of the live ones where a part keeps an average."""
        return self._predict(items, self.kept)

    def _predict(self, items: Items, kept: Kept | None) -> NDArray[np.float32]:
        found = []
        self.net.eval()
        with self.averaged(), torch.inference_mode(), self.setting.autocast():
            for at in range(0, len(items), 64):
                self.setting.ask_midway()
                chunk = items[at : at + 64]
                if kept is not None:
                    logits = self.net.suffix(kept.prefix(None).read(chunk), kept.depth)
                else:
                    logits = self.net(self.setting.problem.evaluation_inputs(chunk))
                found.append(logits.float())
        self.trainee.train_mode()
        predictions: NDArray[np.float32] = torch.cat(found).cpu().numpy()
        if not np.isfinite(predictions).all():
            raise Diverged(
                "diverged", f"predictions on val are not finite after epoch {self.epoch + 1}", epoch=self.epoch + 1,
                term="val",
            )  # fmt: skip
        return predictions

    def averaged(self) -> Any:
        """Inside, the network holds the averaged weights."""
        average = next((s.averaged for s in self.states.values() if s.averaged), None)
        return nullcontext() if average is None else swapped({**self.weights.tensors, **self.weights.buffers}, average)

    # --- interruption

    def facts(self) -> dict[str, Any]:
        return {
            "step": self.step, "epoch": self.epoch, "batch": self.batch,
            "n_summed": self._n_summed, "n_bad": self.n_bad,
            "part_steps": {key: state.n_steps for key, state in self.states.items()},
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        found = {f"optimizer/{key}": tensor for key, tensor in self.optimizer.state.items()}
        found |= {f"sum/{name}": total for name, total in self._sums.items()}
        # Kept, not drawn again: what was drawn may depend on what the network was when the epoch began.
        found |= {f"drawn/{k}": torch.from_numpy(v) for k, v in self._drawn._asdict().items() if v is not None}
        found |= {f"draw_state/{name}": tensor for name, tensor in self._draw_state.items()}
        for key, state in self.states.items():
            found |= {f"average/{key}/{name}": tensor for name, tensor in state.averaged.items()}
            found |= {f"part/{key}/{name}": tensor for name, tensor in state.tensors.items()}
        return found

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.step, self.epoch, self.batch = facts["step"], facts["epoch"], facts["batch"]
        self._n_summed, self.n_bad = facts["n_summed"], facts["n_bad"]
        self._sums = {n: t.to(self.setting.device) for n, t in below(tensors, "sum").items()}
        self._opened = True  # what was drawn has come along
        self._drawn = Drawn(**{name: rows.numpy() for name, rows in below(tensors, "drawn").items()})
        self._show()
        self._draw_state = below(tensors, "draw_state")
        self.optimizer.restore(below(tensors, "optimizer"))
        live = {**self.weights.tensors, **self.weights.buffers}
        for key, state in self.states.items():
            state.n_steps = facts["part_steps"][key]
            average = below(tensors, f"average/{key}")
            state.averaged = {name: torch.empty_like(live[name]).copy_(t) for name, t in average.items()}
            state.tensors = {n: t.to(self.setting.device) for n, t in below(tensors, f"part/{key}").items()}
