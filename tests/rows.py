"""Rows to test with, written as the servers write them."""

from typing import Any

from sqlalchemy.orm import Session

from domain.ids import new_id
from domain.ports import BlobInfo
from domain.states import DatasetState
from store.datasets import finish_upload, insert_dataset
from store.jobs import create_job
from store.moves import become
from store.tables import DatasetRow, JobRow, LotRow, WorkspaceRow
from store.trials import NewTrial, insert_lot

INFO = BlobInfo(3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")  # of b"abc"


def add_workspace(session: Session, name: str = "here") -> str:
    row = WorkspaceRow(id=new_id("workspace"), name=name)
    session.add(row)
    session.flush()
    return row.id


def add_dataset(session: Session, workspace_id: str, state: str = "READY") -> DatasetRow:
    row = insert_dataset(session, workspace_id, name="photos", task="classification", options={})
    if state != "UPLOADING":
        finish_upload(session, row, f"{workspace_id}/datasets/{row.id}/upload", INFO)
    if state in ("READY", "REJECTED"):
        become(session, row, DatasetState(state))
    return row


def a_spec(**changes: Any) -> dict[str, Any]:
    sources = [{"ref": "scratch:smallnet", "backbone": "smallnet", "kind": "scratch"}]
    spec = {"sources": sources, "budget": {"trials": 5, "wall_s": None}, "objective": {"name": "accuracy"}}
    if "objectives" in changes:
        del spec["objective"]  # the older way to say it
    return spec | changes


def add_job(session: Session, dataset: DatasetRow, state: str = "WAITING", **changes: Any) -> JobRow:
    def build() -> JobRow:
        return JobRow(
            id=new_id("job"), workspace_id=dataset.workspace_id, name="a job", dataset_id=dataset.id,
            state="WAITING", spec=a_spec(**changes),
        )  # fmt: skip

    job, _ = create_job(session, dataset.workspace_id, None, "", build)
    ways = {
        "WAITING": (), "PROBING": ("PROBING",), "RUNNING": ("PROBING", "RUNNING"),
        "PAUSED": ("PROBING", "RUNNING", "PAUSED"), "FINISHING": ("PROBING", "RUNNING", "FINISHING"),
        "COMPLETE": ("PROBING", "RUNNING", "FINISHING", "COMPLETE"), "FAILED": ("FAILED",), "CANCELLED": ("CANCELLED",),
    }  # fmt: skip
    for step in ways[state]:
        become(session, job, step)
    return job


def add_lot(session: Session, job: JobRow, *numbers: int) -> LotRow:
    lot = insert_lot(session, job.id, [NewTrial(n, {"optimizer.lr_head": 0.01}, {}) for n in numbers])
    assert lot is not None
    return lot
