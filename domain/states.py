"""The life of datasets, jobs, trials and lots: every state knows its legal moves.

Dataset   UPLOADING -> CHECKING -> READY | REJECTED;  any of them -> DELETED
Job       WAITING -> PROBING -> RUNNING <-> PAUSED;  RUNNING | PAUSED -> FINISHING -> COMPLETE
          anything not finished -> FAILED | CANCELLED
Trial     WAITING -> RUNNING -> COMPLETE | PRUNED | FAILED | CANCELLED
          RUNNING -> PAUSED (with its job, or at a rung) -> WAITING | PRUNED;  a lost RUNNING trial returns to WAITING
Lot       WAITING -> RUNNING -> DONE;  a lost RUNNING lot returns to WAITING, a hopeless one is DONE
          RUNNING -> PAUSED (its trials rest at a rung) -> WAITING | DONE
"""

from enum import StrEnum


class DatasetState(StrEnum):
    UPLOADING = "UPLOADING"
    CHECKING = "CHECKING"
    READY = "READY"
    REJECTED = "REJECTED"
    DELETED = "DELETED"

    def can_become(self, other: "DatasetState") -> bool:
        return other in _DATASET[self]


class JobState(StrEnum):
    WAITING = "WAITING"
    PROBING = "PROBING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHING = "FINISHING"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    def can_become(self, other: "JobState") -> bool:
        return other in _JOB[self]

    @property
    def finished(self) -> bool:
        return not _JOB[self]


class TrialState(StrEnum):
    WAITING = "WAITING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    def can_become(self, other: "TrialState") -> bool:
        return other in _TRIAL[self]

    @property
    def finished(self) -> bool:
        return not _TRIAL[self]


class LotState(StrEnum):
    WAITING = "WAITING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DONE = "DONE"

    def can_become(self, other: "LotState") -> bool:
        return other in _LOT[self]


_DATASET: dict[DatasetState, set[DatasetState]] = {
    DatasetState.UPLOADING: {DatasetState.CHECKING, DatasetState.REJECTED, DatasetState.DELETED},
    DatasetState.CHECKING: {DatasetState.READY, DatasetState.REJECTED, DatasetState.DELETED},
    DatasetState.READY: {DatasetState.DELETED},
    DatasetState.REJECTED: {DatasetState.DELETED},
    DatasetState.DELETED: set(),
}
_JOB: dict[JobState, set[JobState]] = {
    JobState.WAITING: {JobState.PROBING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED},
    JobState.PROBING: {JobState.RUNNING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED},
    JobState.RUNNING: {JobState.PAUSED, JobState.FINISHING, JobState.FAILED, JobState.CANCELLED},
    # A job paused before its probe resumes at WAITING and is probed then.
    JobState.PAUSED: {JobState.WAITING, JobState.RUNNING, JobState.FINISHING, JobState.FAILED, JobState.CANCELLED},
    JobState.FINISHING: {JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED},
    JobState.COMPLETE: set(),
    JobState.FAILED: set(),
    JobState.CANCELLED: set(),
}
_TRIAL: dict[TrialState, set[TrialState]] = {
    TrialState.WAITING: {TrialState.RUNNING, TrialState.FAILED, TrialState.CANCELLED},
    TrialState.RUNNING: {
        TrialState.WAITING, TrialState.PAUSED, TrialState.COMPLETE, TrialState.PRUNED,
        TrialState.FAILED, TrialState.CANCELLED,
    },
    TrialState.PAUSED: {TrialState.WAITING, TrialState.PRUNED, TrialState.CANCELLED},
    TrialState.COMPLETE: set(),
    TrialState.PRUNED: set(),
    TrialState.FAILED: set(),
    TrialState.CANCELLED: set(),
}  # fmt: skip
_LOT: dict[LotState, set[LotState]] = {
    LotState.WAITING: {LotState.RUNNING, LotState.DONE},
    LotState.RUNNING: {LotState.WAITING, LotState.PAUSED, LotState.DONE},
    LotState.PAUSED: {LotState.WAITING, LotState.DONE},
    LotState.DONE: set(),
}
