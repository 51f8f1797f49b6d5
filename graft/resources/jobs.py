"""`client.jobs` and `client.trials`: submit, follow, steer, download."""

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from graft.answers import Event, Job, Page, Report, Trial, read, read_page
from graft.archives import Told
from graft.downloads import download
from graft.errors import GraftError
from graft.events import follow, past
from graft.resources.lists import everything
from graft.transport import Transport, segment


class Jobs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def submit(
        self,
        dataset_id: str,
        *,
        name: str | None = None,
        preset: str | None = None,
        sources: Sequence[str] | None = None,
        teacher: str | None = None,
        source_dataset_id: str | None = None,
        space: Mapping[str, Any] | None = None,
        trials: int | None = None,
        wall_s: float | None = None,
        device_s: float | None = None,
        target: float | None = None,
        patience: int | None = None,
        objective: str | None = None,
        objectives: Sequence[str] | None = None,
        limits: Mapping[str, Mapping[str, float]] | None = None,
        n_folds: int | None = None,
        sampler: str | None = None,
        pruner: str | None = None,
        fidelity: Mapping[str, Any] | Literal[False] | None = None,
        anchors: bool | None = None,
        parallel: int | None = None,
        keep_top: int | None = None,
        screen: bool | None = None,
        learn_from: str | None = None,
        combine: bool | None = None,
        confirm: Mapping[str, int] | bool | None = None,
        seed: int | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Start a search. What is None is left to the `preset`: "fast", "balanced" (the default) or "best".

        `space` fixes dimensions by path, or says where to search them: {"data.flip": False, "regularizer": ["l2",
        "l2_sp"], "optimizer.lr_head": {"low": 0.001, "high": 0.5}}.

        `teacher`: a finished job, "best" or "ensemble" of this one, or a source that is fine-tuned first.
        The search ends with whatever comes first: `trials`, `wall_s` seconds to the bundle, `device_s` seconds of
        training in all, the objective at `target` on val, or `patience` searched trials in a row without a new best.
        `source_dataset_id`: a dataset that the sources were trained on, or one like it.
        `objectives`, in place of `objective`: the first ranks, the others make the result a front.
        `fidelity`: {"dimension": "fraction", "low": 0.3}; trials are tried cheaply first, the best then run in full;
        False: none, whatever the preset says. So for `confirm`.
        `limits`: {"latency_ms": {"at_most": 20}}; only trials that keep within them can win.
        `screen`: whether the sources' ranking before training may reorder them and leave hopeless ones out.
        `learn_from`: whose finished jobs say what to try first: "workspace", "installation" or "nothing".
        `combine`: whether a soup or an ensemble of the best `keep_top` trials, five at most, may be handed back.
        `confirm`: {"top": 3, "seeds": 2} trains the best three again with two more seeds each before one is chosen.
        A lost answer is asked for again under the same Idempotency-Key, so it never starts a second job.
        """
        wanted = {
            "name": name,
            "dataset_id": dataset_id,
            "preset": preset,
            "sources": list(sources) if sources else None,
            "teacher": teacher,
            "source_dataset_id": source_dataset_id,
            "screen": screen,
            "learn_from": learn_from,
            "space": dict(space) if space else None,
            "budget": _budget(trials, wall_s, device_s, target, patience) or None,
            "objective": objective,
            "objectives": list(objectives) if objectives else None,
            "limits": {name: dict(bound) for name, bound in limits.items()} if limits else None,
            "n_folds": n_folds,
            "sampler": sampler,
            "pruner": pruner,
            "fidelity": dict(fidelity) if fidelity else fidelity,
            "anchors": anchors,
            "parallel": parallel,
            "keep_top": keep_top,
            "combine": combine,
            "confirm": dict(confirm) if isinstance(confirm, Mapping) else {} if confirm else confirm,
            "seed": seed,
        }
        response = self._transport.send(
            "POST",
            "/jobs",
            json={k: v for k, v in wanted.items() if v is not None},
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
            idempotent=True,
        )
        return read(Job, response.json())

    def get(self, job_id: str) -> Job:
        return read(Job, self._transport.send("GET", _path(job_id)).json())

    def page(self, *, state: str | None = None, limit: int | None = None, cursor: str | None = None) -> Page[Job]:
        params = {"state": state, "limit": limit, "cursor": cursor}
        return read_page(Job, self._transport.send("GET", "/jobs", params=params).json())

    def list(self, *, state: str | None = None) -> Iterator[Job]:
        """Every job of the workspace, newest first."""
        return everything(lambda cursor: self.page(state=state, limit=100, cursor=cursor))

    def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it is COMPLETE, FAILED or CANCELLED."""
        ends = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.2
        while not (job := self.get(job_id)).finished:
            if ends is not None and time.monotonic() >= ends:
                raise GraftError(f"job {job_id} is still {job.state} after {timeout_s:g} s")
            self._transport.sleep(pause_s)
            pause_s = min(pause_s * 1.5, 2.0)
        return job

    def events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """Every event after `after`, as it happens, until the job has finished. Survives broken connections; where
        server-sent events do not get through, the same events are polled."""
        return follow(self._transport, job_id, after)

    def past_events(self, job_id: str, after: int = 0) -> Iterator[Event]:
        """The events after `after` that have happened by now."""
        return past(self._transport, job_id, after)

    def pause(self, job_id: str) -> Job:
        """Running trials save a resume point and stop."""
        return self._post(job_id, "pause")

    def resume(self, job_id: str) -> Job:
        return self._post(job_id, "resume")

    def cancel(self, job_id: str, *, keep: str = "best") -> Job:
        """`keep="best"`: finish with the best trial so far; `keep="nothing"`: drop it all."""
        return self._post(job_id, "cancel", {"keep": keep})

    def extend(
        self,
        job_id: str,
        *,
        trials: int | None = None,
        wall_s: float | None = None,
        device_s: float | None = None,
        target: float | None = None,
        patience: int | None = None,
    ) -> Job:
        """Raise the budget to these totals; a budget never shrinks."""
        budget = _budget(trials, wall_s, device_s, target, patience)
        return read(Job, self._transport.send("PATCH", f"{_path(job_id)}/budget", json=budget, idempotent=True).json())

    def trials(self, job_id: str) -> Iterator[Trial]:
        """Every trial of the job, first one first."""
        path = f"{_path(job_id)}/trials"
        return everything(
            lambda cursor: read_page(
                Trial, self._transport.send("GET", path, params={"limit": 200, "cursor": cursor}).json()
            )
        )

    def download_bundle(self, job_id: str, path: Path | str, *, tell: Told | None = None) -> Path:
        """The finished job's bundle (zip) as the file `path`, or inside it if it is a folder. Checked by sha256;
        a broken download goes on where it stopped, in a later call too."""
        target = Path(path)
        if target.is_dir():
            target = target / f"{job_id}.zip"
        return download(self._transport, f"{_path(job_id)}/bundle", target, tell=tell)

    def delete(self, job_id: str) -> None:
        self._transport.send("DELETE", _path(job_id))

    def _post(self, job_id: str, verb: str, body: Mapping[str, Any] | None = None) -> Job:
        response = self._transport.send("POST", f"{_path(job_id)}/{verb}", json=body, idempotent=True)
        return read(Job, response.json()) if response.content else self.get(job_id)


class Trials:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, trial_id: str) -> Trial:
        return read(Trial, self._transport.send("GET", f"/trials/{segment(trial_id)}").json())

    def curve(self, trial_id: str) -> tuple[Report, ...]:
        """Every report of the trial, in order."""
        path = f"/trials/{segment(trial_id)}/curve"
        return tuple(
            everything(
                lambda cursor: read_page(Report, self._transport.send("GET", path, params={"cursor": cursor}).json())
            )
        )

    def download_checkpoint(self, trial_id: str, path: Path | str, *, tell: Told | None = None) -> Path:
        """The trial's weights (safetensors), where they were kept."""
        target = Path(path)
        if target.is_dir():
            target = target / f"{trial_id}.safetensors"
        return download(self._transport, f"/trials/{segment(trial_id)}/checkpoint", target, tell=tell)


def _budget(
    trials: int | None, wall_s: float | None, device_s: float | None, target: float | None, patience: int | None
) -> dict[str, float]:
    given = {"trials": trials, "wall_s": wall_s, "device_s": device_s, "target": target, "patience": patience}
    return {name: value for name, value in given.items() if value is not None}


def _path(job_id: str) -> str:
    return f"/jobs/{segment(job_id)}"
