"""Following a job to its end, for a view: events say when to look, REST says what is true."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from graft.answers import Event, Job, Trial
from graft.cli.wording import best_so_far, objective
from graft.errors import GraftError

if TYPE_CHECKING:
    from graft.client import Client

TICK_S = 0.5
LOOK_S = 1.0  # between two looks at the job
_SETTLED = frozenset({"COMPLETE", "PRUNED", "FAILED", "CANCELLED"})


@dataclass
class Picture:
    """All that a view shows: the job, its trials, and when we learned of it."""

    job: Job
    trials: dict[str, Trial] = field(default_factory=dict)
    seen_at: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float | None:
        """The service's estimate, counted down since."""
        if self.job.left_s is None:
            return None
        return max(0.0, self.job.left_s - (time.monotonic() - self.seen_at))

    @property
    def elapsed_s(self) -> float | None:
        if self.job.elapsed_s is None or self.job.finished:
            return self.job.elapsed_s
        return self.job.elapsed_s + time.monotonic() - self.seen_at

    def in_order(self) -> list[Trial]:
        return sorted(self.trials.values(), key=lambda t: t.number)

    def best_curve(self) -> list[float]:
        """The best value on val after each finished trial."""
        _, more_is_better = objective(self.job)
        finished = sorted(
            (t for t in self.trials.values() if t.state == "COMPLETE" and t.value is not None),
            key=lambda t: (t.finished_at or "", t.number),
        )
        return best_so_far([t.value for t in finished if t.value is not None], more_is_better=more_is_better)


class View(Protocol):
    def event(self, event: Event, picture: Picture, /) -> None: ...
    def show(self, picture: Picture, /) -> None: ...


@dataclass
class _Broken:
    error: Exception


def follow(client: "Client", job: Job, view: View) -> Job:
    """Show the job until it has finished. KeyboardInterrupt passes; the job goes on then."""
    picture = Picture(job, {t.id: t for t in client.jobs.trials(job.id)})
    arrived: queue.SimpleQueue[Event | _Broken] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(client, job.id, arrived.put), daemon=True).start()
    changed: set[str] = set()
    ended = False
    looked = float("-inf")
    while True:
        for event in _drain(arrived):
            ended = ended or event.ends_job
            trial_id = event.body.get("trial_id")
            if trial_id and event.kind.startswith("trial.") and not _settled(picture, trial_id):
                changed.add(trial_id)
                _apply_report(picture, event)
            view.event(event, picture)
        if ended or time.monotonic() - looked >= LOOK_S:
            picture.job, picture.seen_at = client.jobs.get(job.id), time.monotonic()
            for trial_id in changed:
                picture.trials[trial_id] = client.trials.get(trial_id)
            changed.clear()
            looked = time.monotonic()
        view.show(picture)
        if picture.job.finished:
            return picture.job


def _listen(client: "Client", job_id: str, put: Callable[[Event | _Broken], None]) -> None:
    try:
        for event in client.jobs.events(job_id):
            put(event)
    except Exception as error:  # told to the main thread, which decides
        put(_Broken(error))


def _drain(arrived: "queue.SimpleQueue[Event | _Broken]") -> list[Event]:
    """What has arrived, after waiting a tick for the first of it."""
    events: list[Event] = []
    wait_s = TICK_S
    while True:
        try:
            item = arrived.get(timeout=wait_s)
        except queue.Empty:
            return events
        if isinstance(item, _Broken):
            if isinstance(item.error, GraftError):
                raise item.error
            raise GraftError(f"the events of the job cannot be read: {item.error!r}") from item.error
        events.append(item)
        wait_s = 0.0 if len(events) < 500 else -1.0
        if wait_s < 0:
            return events


def _settled(picture: Picture, trial_id: str) -> bool:
    trial = picture.trials.get(trial_id)
    return trial is not None and trial.state in _SETTLED


def _apply_report(picture: Picture, event: Event) -> None:
    """A report moves its trial at once; the next look brings the rest."""
    from dataclasses import replace

    trial = picture.trials.get(event.body["trial_id"])
    if trial is None or event.kind != "trial.report":
        return
    value = event.body.get("value")
    picture.trials[trial.id] = replace(
        trial, share=event.body.get("share", trial.share), value=trial.value if value is None else value
    )
