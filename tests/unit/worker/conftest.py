"""Workers without networks: a real database of either kind, a folder of blobs, a doorbell that is listened to."""

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from domain.catalogue import catalogue
from domain.default_space import job_space
from domain.job import Budget, JobSpec, Objective, ResolvedSource
from domain.states import TrialState
from store.blob_rows import add_blob
from store.leases import claim, hold
from store.moves import become
from store.queue import LocalListener, listen_local
from store.settings import Settings
from store.tables import DatasetRow, JobRow, LotRow, TrialRow
from store.trials import note_best, set_trial_facts, trials_of, trials_of_lot
from tests.rows import add_dataset, add_job, add_workspace
from worker.context import Context, open_context

SOURCE = ResolvedSource(ref="torchvision:resnet18", backbone="resnet18", kind="torchvision")


def make_spec(*, overrides: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    """Three anchors and a search over what is left of six trials, one worker."""
    space = job_space("classification", (SOURCE,), catalogue(), n_train=300, has_teacher=False, overrides=overrides)
    spec = JobSpec(
        task="classification", sources=(SOURCE,), space=space, budget=Budget(trials=6), seed=3,
        objectives=(Objective(name="accuracy"),), n_folds=1, parallel=1, keep_top=1,
    )  # fmt: skip
    return spec.model_copy(update=changes)


@dataclass
class Workshop:
    context: Context
    listener: LocalListener

    def job(self, state: str = "RUNNING", *, overrides: dict[str, Any] | None = None, **changes: Any) -> str:
        spec = make_spec(overrides=overrides, **changes)
        with self.context.transaction() as session:
            dataset = add_dataset(session, add_workspace(session))
            session.get_one(DatasetRow, dataset.id).summary = {"classes": ["ant", "bee"]}
            return add_job(session, dataset, state, **spec.model_dump(mode="json")).id

    def heard(self) -> list[tuple[str, str]]:
        """What was rung since the last call."""
        return self.listener.wait(0.0)

    def state(self, job_id: str) -> JobRow:
        with self.context.reading() as session:
            return session.get_one(JobRow, job_id)

    def trials(self, job_id: str) -> list[TrialRow]:
        with self.context.reading() as session:
            return trials_of(session, job_id)

    def write(self, row: type[Any], row_id: str, **changes: Any) -> None:
        with self.context.transaction() as session:
            session.execute(update(row).where(row.id == row_id).values(**changes))

    def begin(self, lot_id: str, owner: str = "somebody", lease_s: float = 60.0) -> int:
        """The lot is claimed, its trials run."""
        with self.context.transaction() as session:
            fence = claim(session, LotRow, lot_id, state_from="WAITING", state_to="RUNNING", owner=owner,
                          lease_s=lease_s, max_attempts=99)  # fmt: skip
            assert fence is not None
            for trial in trials_of_lot(session, lot_id):
                become(session, trial, TrialState.RUNNING)
            return fence

    def end(self, trial: TrialRow, state: str = "COMPLETE", *, resume: bool = False, **changes: Any) -> None:
        """The trial runs and ends, with weights if it is COMPLETE, as a worker leaves it."""
        fence = self.begin(trial.lot_id)
        keys = {}
        if state == "COMPLETE":
            keys["checkpoint_blob"] = f"{trial.workspace_id}/trials/{trial.id}/{fence}/weights.safetensors"
        if resume:
            keys["resume_blob"] = f"{trial.workspace_id}/trials/{trial.id}/{fence}/resume-1.zip"
        stored = {key: self.context.blobs.put(key, io.BytesIO(b"weights")) for key in keys.values()}
        with self.context.transaction() as session:
            lot = hold(session, LotRow, trial.lot_id, fence)
            row = session.get_one(TrialRow, trial.id)
            for key, info in stored.items():
                add_blob(session, trial.workspace_id, key, info, trial.id)
            if keys:
                set_trial_facts(session, row, **keys)
            become(session, row, state, **changes)
            become(session, lot, "DONE")
            if state == "COMPLETE":
                note_best(session, session.get_one(JobRow, trial.job_id), row)

    def kept(self) -> set[str]:
        """What lies in the blob store of trials: <trial>/<name of the file>."""
        return {"/".join(key.split("/")[2::2]) for key in self.context.blobs.keys() if "/trials/" in key}  # noqa: SIM118

    def age(self, key: str, by_s: float) -> None:
        (file,) = (self.context.settings.home / "blobs" / key).parent.glob(f"{Path(key).name}@*")
        then = time.time() - by_s
        os.utime(file, (then, then))


Open = Callable[..., Workshop]


@pytest.fixture
def open_workshop(database_url: str, tmp_path: Path) -> Iterator[Open]:
    """A worker of this installation; several may be opened, each as a process of its own would be."""
    opened: list[Workshop] = []

    def make(**settings: Any) -> Workshop:
        frozen = Settings(home=tmp_path / "home", database_url=database_url, **settings)
        opened.append(Workshop(open_context(frozen), listen_local(frozen)))
        return opened[-1]

    yield make
    for workshop in opened:
        workshop.context.crew.stop()
        workshop.context.engine.dispose()
        workshop.listener.close()


@pytest.fixture
def place(open_workshop: Open) -> Workshop:
    return open_workshop()
