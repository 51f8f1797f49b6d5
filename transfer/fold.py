"""One fit of a trial: its phases in turn, what it is ranked by, and the weights it ends with."""

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from domain.errors import Invalid
from domain.rungs import steps_at_rungs
from models.ensemble import mean_logits
from transfer import heads
from transfer.bench import Bench
from transfer.checkpoint import join_members
from transfer.closed_form import logits_of, solve_path
from transfer.loop import Loop
from transfer.phase import Outcome, Phase, Plan, covers
from transfer.prefix import Kept, Prefix
from transfer.resume import below
from transfer.setting import Setting

Logits = NDArray[np.float32]


class Sight(NamedTuple):
    """What an evaluation, or the end of a phase, shows."""

    phase: int
    step: int
    share: float  # of this fit
    value: float | None
    terms: dict[str, float]


@dataclass
class Best:
    """The best evaluation on val so far: its rank, its predictions, a copy of the network."""

    rank: tuple[float, float]
    logits: Logits
    state: dict[str, Tensor]
    value: float
    log_loss: float


class Member(NamedTuple):
    """One network of an ensemble: its checkpoint, its predictions on val."""

    weights: dict[str, Tensor]
    logits: Logits | None


class FoldRun:
    """Fit number `fold` of a trial. `choice` is the strength that a closed form takes where no val can choose."""

    def __init__(self, setting: Setting, fold: int, *, choice: int | None = None) -> None:
        self.setting, self.bench = setting, Bench(setting, fold)
        self.net, self.outcomes = self.bench.net, self.bench.outcomes
        self._planner = next((part for part in setting.parts if part.says("phases")), None)
        self.choice = choice
        self.best: Best | None = None
        self.loop: Loop | None = None
        self.logits: Logits | None = None  # on val, of the weights this fit ends with
        self.candidates: Logits | None = None  # (S, n_val, C), where the last phase was a closed form
        self.members: list[Member] = []  # of the ensemble that this fit ends with, where phases leave some
        self._steps_before = 0
        self._at_rungs = steps_at_rungs(setting.recipe.steps, fit=fold, n_fits=setting.n_fits)
        self._copied: int | None = None  # the phase in which all of the best network was copied
        self._resumed: tuple[Mapping[str, Any], dict[str, Tensor]] | None = None

    # --- phases

    def run(self) -> Iterator[Sight]:
        """Carry the phases out; yields at every evaluation, the last time at share 1."""
        plan = self.bench.plan
        phases = _one_phase(plan) if self._planner is None else self._planner.call("phases", plan)
        phase: Phase | None = next(phases)
        for outcome in list(self.outcomes):  # on resume: replayed with the recorded outcomes
            if phase is not None:
                self.bench.note(phase)
                phase = _next(phases, outcome)
        while phase is not None:
            index = len(self.outcomes)
            if phase.solve == "closed_form":
                sight = self._closed_form(phase, index)
            else:
                sight = yield from self._gradient(phase, index, self._n_steps(phase, plan))
            self.bench.note(phase)
            phase = _next(phases, self.outcomes[-1])
            if phase is None and self.members:
                sight = self._join(sight)
            # Whatever the phases left unspent is spent once the last one is over.
            yield sight._replace(share=1.0 if phase is None else min(sight.share, 1 - 1e-9))

    def _gradient(self, phase: Phase, index: int, n_steps: int) -> Generator[Sight, None, Sight]:
        """Train; yields the evaluations before the last and returns the last, once the outcome is recorded."""
        self._begin(phase)
        self.candidates = None
        at_rungs = [step - self._steps_before for step in self._at_rungs]
        loop = self.loop = Loop(self.bench, phase, index, n_steps, evaluated_at=at_rungs)
        if self._resumed is not None:
            loop.restore(*self._resumed)
            self._resumed = None
        if not loop.weights:  # such as a lone batch norm, where the recipe holds those
            sight, _ = self._evaluate(loop)
        for _ in heads.train(loop) if loop.weights else ():
            sight, better = self._evaluate(loop)
            if better:
                loop.n_bad = 0
            elif loop.step in loop.chosen:  # one more look, where trials are compared, costs no patience
                loop.n_bad += 1
            out_of_patience = phase.patience is not None and len(self.bench.val) and loop.n_bad >= phase.patience
            if loop.step == n_steps or out_of_patience:
                break
            yield sight
        self._end(phase, loop)
        self._steps_before += n_steps
        self.outcomes.append(Outcome(index, loop.step, sight.value, sight.terms.get("val/log_loss")))
        self.loop = None
        return sight

    def _begin(self, phase: Phase) -> None:
        if self._resumed is not None:
            return
        if phase.teacher == "previous":
            self.bench.keep_as_teacher()
        if phase.begin == "start" and self.outcomes:
            self.bench.begin_again()
            self.best = None  # what came before is another story
        elif phase.begin == "best" and self.best is not None:
            self._load_state(self.best.state)

    def _end(self, phase: Phase, loop: Loop) -> None:
        """Leave the network, and the predictions, as the phase wants to keep them."""
        with torch.no_grad():
            for name, average in next((s.averaged for s in loop.states.values() if s.averaged), {}).items():
                self.net.get_parameter(name).copy_(average) if name in loop.weights else \
                    self.net.get_buffer(name).copy_(average)  # fmt: skip
        # Across folds the last weights count: they are what the closing fit, which has no val, will end with.
        if phase.keep != "last" and self.best is not None and self.setting.n_fits == 1:
            self._load_state(self.best.state)
            self.logits = self.best.logits
        if phase.keep == "member":
            self.members.append(Member({n: t.clone() for n, t in self._own_weights().items()}, self.logits))

    def _join(self, sight: Sight) -> Sight:
        """What the ensemble of all members is worth on val."""
        logits = [torch.from_numpy(m.logits) for m in self.members if m.logits is not None]
        if not logits:
            return sight
        joined: Logits = mean_logits(logits).numpy()
        self.logits = joined
        value, found = measure(self.setting, joined, self.bench.val_labels)
        return sight._replace(value=value, terms=sight.terms | {f"val/{name}": v for name, v in found.items()})

    def _evaluate(self, loop: Loop) -> tuple[Sight, bool]:
        """Look at val, and keep a copy of the network if it was never better."""
        terms, value, better = loop.means(), None, False
        if len(self.bench.val) and loop.follows_the_task:
            self.logits = loop.predict(self.bench.val)
            value, found = measure(self.setting, self.logits, self.bench.val_labels)
            terms |= {f"val/{name}": number for name, number in found.items()}
            rank = rank_of(self.setting, value, found["log_loss"])
            better = self.best is None or rank > self.best.rank
            if better:
                state = {}
                if self._planner or (loop.phase.keep != "last" and self.setting.n_fits == 1):
                    with loop.averaged():
                        state = self._copy_best(loop)
                self.best = Best(rank, self.logits, state, value, found["log_loss"])
        step = self._steps_before + loop.step
        share = self._at_rungs.get(step, min(step / max(1, self.setting.recipe.steps), 1.0))
        return Sight(loop.index, step, share, value, terms), better

    def _n_steps(self, phase: Phase, plan: Plan) -> int:
        left = max(1, plan.steps - self._steps_before)
        return left if phase.share is None else max(1, min(left, round(phase.share * plan.steps)))

    # --- closed form

    def _closed_form(self, phase: Phase, index: int) -> Sight:
        """Solve the head on features of evaluation pixels, for every strength; val takes the best."""
        head = self.net.head
        if not isinstance(head, nn.Linear):
            raise Invalid(
                "closed_form_needs_linear_head", "a closed form solves a linear head; choose head.kind linear"
            )
        self.bench.ask()
        self._begin(phase)
        depth = self.net.n_stages
        kept = Kept(self.setting, self.net, depth, untouched=not self.bench.touched(depth), looks=False)
        prefix = kept.prefix(None)
        self.net.eval()
        # What other trials cut before is of use to all of them on val; train they may show in looks of their own.
        there = len(self.bench.val) == 0 or kept.filled(None, self.bench.val) is not None
        if not (there and prefix.fill(self.setting, self.net, self.bench.train)):
            raise Invalid("features_too_large", "the features of this dataset do not fit into memory")
        answers = solve_path(self._features(prefix, self.bench.train), self.bench.train_labels, self.setting.n_classes)
        value, terms, choice = None, {}, self.choice
        if len(self.bench.val):
            self.candidates = logits_of(answers, self._features(prefix, self.bench.val))
            choice, value, found = choose(self.setting, self.candidates, self.bench.val_labels)
            self.logits = self.candidates[choice]
            terms = {f"val/{name}": number for name, number in found.items()}
        if choice is None:
            choice = len(answers) // 2
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(answers[choice].weight))
            head.bias.copy_(torch.from_numpy(answers[choice].bias))
        if value is not None and self.logits is not None:
            rank = rank_of(self.setting, value, terms["val/log_loss"])
            if self.best is None or rank > self.best.rank:
                self.best = Best(rank, self.logits, self._copy_state(), value, terms["val/log_loss"])
        self.outcomes.append(Outcome(index, 0, value, terms.get("val/log_loss"), choice))
        share = self._steps_before / max(1, self.setting.recipe.steps)
        return Sight(index, self._steps_before, share, value, terms)

    def _features(self, prefix: Prefix, items: NDArray[np.int64]) -> NDArray[np.float64]:
        features: NDArray[np.float64] = prefix.read(items).double().cpu().numpy()
        return features

    # --- state

    def _copy_state(self) -> dict[str, Tensor]:
        return {name: torch.empty_like(t).copy_(t) for name, t in self.net.state_dict().items()}

    def _copy_best(self, loop: Loop) -> dict[str, Tensor]:
        """A copy of the network, over the last one; within a phase of what the phase may change alone."""
        if self.best is None:
            state = self._copy_state()
        else:
            state, frozen = self.best.state, {name for name, _ in self.net.named_parameters()} - set(loop.weights)
            for name, tensor in self.net.state_dict().items():
                if self._copied != loop.index or name not in frozen:
                    state[name].copy_(tensor)
        self._copied = loop.index
        return state

    def _load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.net.state_dict().items():
            tensor.copy_(state[name])

    def weights(self) -> dict[str, Tensor]:
        """The checkpoint: everything but what exists for training alone; of every member where there are several."""
        if self.members:
            return join_members([member.weights for member in self.members])
        return self._own_weights()

    def _own_weights(self) -> dict[str, Tensor]:
        return {n: t for n, t in self.net.state_dict().items() if not covers(self.bench.train_only, n)}

    def facts(self) -> dict[str, Any]:
        best = self.best
        return {
            "choice": self.choice, "steps_before": self._steps_before, "n_beginnings": self.bench.n_beginnings,
            "n_members": len(self.members), "n_splits": self.bench.n_splits,
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
            "loop": None if self.loop is None else self.loop.facts(),
            "best": None if best is None else {"rank": best.rank, "value": best.value, "log_loss": best.log_loss},
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        found = {f"net/{name}": tensor for name, tensor in self.net.state_dict().items()}
        if self.best is not None:
            found |= {f"best/{name}": tensor for name, tensor in self.best.state.items()}
            found["best_logits"] = torch.from_numpy(self.best.logits)
        if self.logits is not None:
            found["logits"] = torch.from_numpy(self.logits)
        if self.candidates is not None:
            found["candidates"] = torch.from_numpy(self.candidates)
        for m, member in enumerate(self.members):
            found |= {f"member/{m}/{name}": tensor for name, tensor in member.weights.items()}
            if member.logits is not None:
                found[f"member_logits/{m}"] = torch.from_numpy(member.logits)
        if self.bench.previous is not None:
            found |= {f"previous/{name}": tensor for name, tensor in self.bench.previous.state_dict().items()}
        if self.loop is not None:
            found |= {f"loop/{name}": tensor for name, tensor in self.loop.tensors().items()}
        return found

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue where `facts()` and `tensors()` were taken."""
        self._load_state(below(tensors, "net"))
        self.outcomes[:] = [Outcome(**outcome) for outcome in facts["outcomes"]]
        self.choice, self._steps_before = facts["choice"], facts["steps_before"]
        self.bench.n_beginnings, self.bench.n_splits = facts["n_beginnings"], facts["n_splits"]
        for m in range(facts["n_members"]):
            voted = tensors.get(f"member_logits/{m}")
            self.members.append(Member(below(tensors, f"member/{m}"), None if voted is None else voted.numpy()))
        self.logits = tensors["logits"].numpy() if "logits" in tensors else None
        self.candidates = tensors["candidates"].numpy() if "candidates" in tensors else None
        if facts["best"] is not None:
            like = self.net.state_dict()
            state = {n: torch.empty_like(like[n]).copy_(t) for n, t in below(tensors, "best").items()}
            best = facts["best"]
            rank, logits = (best["rank"][0], best["rank"][1]), tensors["best_logits"].numpy()
            self.best = Best(rank, logits, state, best["value"], best["log_loss"])
        if previous := below(tensors, "previous"):
            self.bench.keep_as_teacher()
            if self.bench.previous is not None:
                self.bench.previous.load_state_dict(previous)
        if facts["loop"] is not None:
            self._resumed = (facts["loop"], below(tensors, "loop"))


def measure(setting: Setting, logits: Logits, targets: NDArray[np.int64]) -> tuple[float, Mapping[str, float]]:
    """The objective, and every metric, of predictions (n, C)."""
    found: Mapping[str, float] = setting.task.metrics(logits, targets)
    return found[setting.order.objective.name], found


def rank_of(setting: Setting, value: float, log_loss: float) -> tuple[float, float]:
    """Larger is better; of equals the one with the lower log-loss."""
    sign = -1 if setting.order.objective.direction == "minimize" else 1
    return sign * value, -log_loss


def choose(setting: Setting, candidates: Logits, targets: NDArray[np.int64]) -> tuple[int, float, Mapping[str, float]]:
    """The best of (S, n, C) predictions: its place, its value, its metrics. The stronger penalty wins a tie."""
    seen = [measure(setting, logits, targets) for logits in candidates]
    ranks = [(*rank_of(setting, value, found["log_loss"]), place) for place, (value, found) in enumerate(seen)]
    choice = max(ranks)[-1]
    return choice, *seen[choice]


def _one_phase(plan: Plan) -> Generator[Phase, Outcome, None]:
    """Without a schedule everything is trained, in one phase."""
    yield Phase(trainable=plan.everything)


def _next(phases: Generator[Phase, Outcome, None], outcome: Outcome) -> Phase | None:
    try:
        return phases.send(outcome)
    except StopIteration:
        return None
