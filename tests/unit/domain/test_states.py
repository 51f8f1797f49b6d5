from collections import deque
from enum import StrEnum

import pytest

from domain.states import DatasetState, JobState, LotState, TrialState

KINDS: list[type[StrEnum]] = [DatasetState, JobState, TrialState, LotState]


def reachable(start: StrEnum) -> set[StrEnum]:
    seen, todo = {start}, deque([start])
    while todo:
        state = todo.popleft()
        for other in type(start):
            if state.can_become(other) and other not in seen:  # type: ignore[attr-defined]
                seen.add(other)
                todo.append(other)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_can_be_reached_and_none_is_its_own_successor(kind: type[StrEnum]) -> None:
    first = next(iter(kind))
    assert reachable(first) == set(kind)
    assert not any(state.can_become(state) for state in kind)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [JobState, TrialState])
def test_every_state_that_is_not_finished_leads_to_an_end(kind: type[JobState] | type[TrialState]) -> None:
    for state in kind:
        assert any(other.finished for other in reachable(state)), state  # type: ignore[attr-defined]


@pytest.mark.parametrize("finished", [s for s in (*JobState, *TrialState) if s.finished])
def test_nothing_leaves_a_finished_state(finished: JobState | TrialState) -> None:
    assert not any(finished.can_become(other) for other in type(finished))  # type: ignore[arg-type]


def test_a_cancelled_job_can_not_run_again() -> None:
    assert not JobState.CANCELLED.can_become(JobState.RUNNING)
    assert JobState.RUNNING.can_become(JobState.FINISHING)
    assert not JobState.COMPLETE.can_become(JobState.FINISHING)


def test_a_lost_trial_returns_to_waiting() -> None:
    assert TrialState.RUNNING.can_become(TrialState.WAITING)
    assert LotState.RUNNING.can_become(LotState.WAITING)
