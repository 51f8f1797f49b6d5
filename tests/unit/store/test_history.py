"""What past jobs tell later ones, in both databases: live, complete, and of one workspace."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from domain.confirming import REPEATED
from domain.history import Meta, PastTrial
from domain.teaching import TEACHER
from store import jobs
from store.history import past_jobs, past_trials
from store.moves import become
from store.session import reading, transaction
from store.tables import DatasetRow, JobRow
from store.trials import NewTrial, insert_lot, trials_of
from tests.rows import add_dataset, add_job, add_workspace

META = Meta(n_train=100, n_classes=5, per_class_mean=20.0, per_class_min=10, resolution=96)
TASK = "classification"
Wanted = tuple[str, float | None, dict[str, Any]]  # state, value, and what else is to say of the trial


def add_past(
    session: Session, dataset: DatasetRow, trials: Sequence[Wanted] = (), *, objective: str = "accuracy",
    task: str = TASK, state: str = "COMPLETE", estimate: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    job = add_job(session, dataset, "RUNNING", task=task, objectives=[{"name": objective}])
    for number, (ended, value, more) in enumerate(trials):
        new = NewTrial(number, {"steps": number, "source": "src_1"}, {"backbone": "resnet18"}, **more)
        assert insert_lot(session, job.id, [new]) is not None
        trial = trials_of(session, job.id)[number]
        become(session, trial, "RUNNING")
        become(session, trial, ended, value=value)
    jobs.set_facts(session, job, estimate={"meta": META.model_dump()} if estimate is None else estimate)
    for step in {"COMPLETE": ("FINISHING", "COMPLETE"), "FINISHING": ("FINISHING",)}.get(state, (state,)):
        become(session, job, step)
    return job.id


def seen(session: Session, workspace_id: str | None, task: str = TASK) -> list[str]:
    return sorted(job.id for job in past_jobs(session, task=task, workspace_id=workspace_id))


def test_another_workspaces_jobs_are_read_only_where_all_are(engine: Engine) -> None:
    with transaction(engine) as session:
        mine, other = add_workspace(session), add_workspace(session)
        own = add_past(session, add_dataset(session, mine), objective="log_loss")
        foreign = add_past(session, add_dataset(session, other))
    with reading(engine) as session:
        assert seen(session, mine) == [own]
        assert seen(session, other) == [foreign]
        assert seen(session, None) == sorted([own, foreign])
        (found,) = past_jobs(session, task=TASK, workspace_id=mine)
        assert (found.meta, found.direction) == (META, "minimize")


def test_only_finished_jobs_of_the_task_that_say_what_they_were_like(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        dataset = add_dataset(session, workspace_id)
        kept = add_past(session, dataset)
        for state in ("FINISHING", "CANCELLED", "FAILED"):
            add_past(session, dataset, state=state)
        add_past(session, dataset, estimate={"s_per_trial": 1.0})
        add_past(session, dataset, estimate={"meta": {"n_train": "many"}})
        elsewhere = add_past(session, dataset, task="segmentation")
    with reading(engine) as session:
        assert seen(session, workspace_id) == [kept]
        assert seen(session, workspace_id, "segmentation") == [elsewhere]


def test_a_deleted_job_is_history_no_more(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        job_id = add_past(session, add_dataset(session, workspace_id), [("COMPLETE", 0.5, {})])
    with transaction(engine) as session:
        jobs.delete_job(session, workspace_id, job_id)
    with reading(engine) as session:
        assert seen(session, workspace_id) == []
        assert past_trials(session, [job_id]) == {}


def test_complete_trials_by_number_repeats_as_the_mean_and_no_teacher(engine: Engine) -> None:
    trials: list[Wanted] = [
        ("COMPLETE", 0.5, {"anchor": "l2_sp"}), ("COMPLETE", 0.9, {"anchor": TEACHER}), ("COMPLETE", 0.8, {}),
        ("PRUNED", 0.3, {}), ("FAILED", None, {}), ("COMPLETE", 0.6, {"attrs": {"origin": REPEATED, "of": 2}}),
    ]  # fmt: skip
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
        job_id, other = add_past(session, dataset, trials), add_past(session, dataset, trials[:1])
    with reading(engine) as session:
        found = past_trials(session, [job_id])
        both = past_trials(session, [job_id, other, "job_0"])
    assert set(both) == {job_id, other}
    assert [t.model_dump() for t in found[job_id]] == [
        PastTrial(number=0, values={"steps": 0, "source": "src_1"}, value=0.5, backbone="resnet18", anchor="l2_sp")
        .model_dump(),
        PastTrial(number=2, values={"steps": 2, "source": "src_1"}, value=0.7, backbone="resnet18").model_dump(),
    ]  # fmt: skip


def test_the_newest_jobs_first(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
        ids = [add_past(session, dataset) for _ in range(3)]
        for age, job_id in enumerate(ids):
            jobs.set_facts(session, session.get_one(JobRow, job_id), created_at=100.0 - age)
    with reading(engine) as session:
        assert [job.id for job in past_jobs(session, task=TASK, workspace_id=dataset.workspace_id)] == ids
