"""What Optuna is shown of a study: the trials of our rows, under our own numbers, in their order."""

# ruff: noqa: ARG002  (the interface is Optuna's)

import heapq
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

# Samplers note the values they propose for the sake of other processes; ours read them in the trial itself. These
# notes also name values that turned out to be inactive.
_SAID_TWICE = ":relative_params"


@dataclass(frozen=True, slots=True)
class Most:
    """As much of a history as a sampler wants to see of one objective: the best trials, and the latest ones."""

    best: int
    latest: int

    def of(self, trials: list[FrozenTrial], larger_is_better: bool) -> list[FrozenTrial]:
        """`trials` by number, of those that have ended only the best and the latest."""
        ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        if len(ended) <= self.best + self.latest:
            return trials
        earlier = [t for t in ended[: -self.latest] if t.state == TrialState.COMPLETE]
        sign = -1.0 if larger_is_better else 1.0
        best = heapq.nsmallest(self.best, earlier, key=lambda t: sign * (t.values or [math.inf])[0])
        shown = {t.number for t in (*best, *ended[-self.latest :])}
        return [t for t in trials if t.number in shown or not t.state.is_finished()]


class History(InMemoryStorage):
    """A storage whose trial ids are our trial numbers. Rows come in any order and are shown by number.

    Nothing is copied on the way in or out, so that thousands of trials are read at once. What a sampler notes on the
    study belongs to the trial it was asked for, and is gone with it: the lowest number's note counts. So a study
    rebuilt from rows is the study that they came from.
    """

    def __init__(self, most: Most | None = None) -> None:
        """`most` is what a sampler that is asked is shown at most; None shows everything."""
        super().__init__()
        self.number = 0  # of the trial to be asked for next
        self._most = most
        self._asking = False
        self._by_number: dict[int, FrozenTrial] = {}
        self._in_order: list[FrozenTrial] | None = None
        self._study_notes: dict[int, dict[str, Any]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._by_number

    def put(self, trial: FrozenTrial, study_notes: dict[str, Any]) -> None:
        """Add a trial, or replace what is known of it."""
        self.drop(trial.number)
        self._by_number[trial.number] = trial
        if study_notes:
            self._study_notes[trial.number] = study_notes

    def drop(self, number: int) -> None:
        self._by_number.pop(number, None)
        self._study_notes.pop(number, None)
        self._in_order, self._asking = None, False

    def notes(self, number: int) -> dict[str, dict[str, Any]]:
        """What the sampler wrote while it was asked for this trial: on the trial, and on the study."""
        found = {
            "sampler": {k: v for k, v in self._by_number[number].system_attrs.items() if _SAID_TWICE not in k},
            "study": self._study_notes.get(number, {}),
        }
        return {key: notes for key, notes in found.items() if notes}

    # --- Optuna's interface, as far as asking and pruning use it

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._study_notes.setdefault(self.number, {})[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {k: v for n in sorted(self._study_notes, reverse=True) for k, v in self._study_notes[n].items()}

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self.put(template_trial or frozen(self.number, TrialState.RUNNING), {})
        self._asking = True  # until the answer is put in its place
        return self.number

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return trial_number

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._by_number[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if self._in_order is None:
            self._in_order = [trial for _, trial in sorted(self._by_number.items())]
            directions = self.get_study_directions(study_id)
            if self._asking and self._most is not None and len(directions) == 1:
                self._in_order = self._most.of(self._in_order, directions[0] == StudyDirection.MAXIMIZE)
        return list(self._in_order) if states is None else [t for t in self._in_order if t.state in states]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self._by_number[trial_id]
        trial.params[param_name] = distribution.to_external_repr(param_value_internal)
        trial.distributions[param_name] = distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._by_number[trial_id].system_attrs[key] = value

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._by_number[trial_id].intermediate_values[step] = intermediate_value


def frozen(
    number: int, state: TrialState, *, params: dict[str, Any] | None = None,
    distributions: dict[str, BaseDistribution] | None = None, values: Sequence[float] | None = None,
    curve: dict[int, float] | None = None, notes: dict[str, Any] | None = None,
) -> FrozenTrial:  # fmt: skip
    """A trial as Optuna knows it, its id our number."""
    return FrozenTrial(
        number=number, trial_id=number, state=state, value=None, values=values, params=params or {},
        distributions=distributions or {}, intermediate_values=curve or {}, system_attrs=notes or {}, user_attrs={},
        datetime_start=None, datetime_complete=None,
    )  # fmt: skip
