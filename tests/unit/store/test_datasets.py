import pytest
from sqlalchemy import Engine

from domain.errors import Conflict, NotFound
from domain.ids import new_id
from store import datasets
from store.blob_rows import add_blob, add_ref, blob_info, drop_ref, drop_refs, unreferenced, used_bytes
from store.session import reading, transaction
from store.tables import DatasetRow
from tests.rows import INFO, add_dataset, add_job, add_workspace


def test_an_upload_becomes_a_dataset_to_check(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        row = datasets.insert_dataset(session, workspace_id, name="a", task="classification", options={"seed": 1})
        assert (row.state, row.options) == ("UPLOADING", {"seed": 1})
        datasets.finish_upload(session, row, "ws/datasets/a/upload", INFO)
        assert (row.state, row.size_bytes, row.sha256) == ("CHECKING", 3, INFO.sha256)
        assert row.summary is None
        with pytest.raises(Conflict):
            datasets.finish_upload(session, row, "ws/datasets/a/upload", INFO)
    with reading(engine) as session:
        assert datasets.list_datasets(session, workspace_id, state="CHECKING").items[0].id == row.id
        assert used_bytes(session, workspace_id) == 3


def test_a_dataset_that_a_job_needs_stays(engine: Engine) -> None:
    with transaction(engine) as session:
        row = add_dataset(session, add_workspace(session))
        job = add_job(session, row, "PAUSED")
        with pytest.raises(Conflict) as caught:
            datasets.delete_dataset(session, row.workspace_id, row.id)
    assert caught.value.facts == {"needed_by": [job.id]}


def test_a_deleted_dataset_is_gone_but_its_finished_jobs_stay(engine: Engine) -> None:
    with transaction(engine) as session:
        row = add_dataset(session, add_workspace(session))
        job = add_job(session, row, "COMPLETE")
        upload = row.upload_blob
        assert datasets.delete_dataset(session, row.workspace_id, row.id) == [upload]
    with reading(engine) as session:
        assert datasets.list_datasets(session, row.workspace_id).items == []
        with pytest.raises(NotFound):
            datasets.get_dataset(session, row.workspace_id, row.id)
        assert session.get_one(DatasetRow, row.id).state == "DELETED"
        assert job.dataset_id == row.id


def test_looks_at_the_test_split_are_counted(engine: Engine) -> None:
    with transaction(engine) as session:
        row = add_dataset(session, add_workspace(session))
        assert [datasets.count_test_look(session, row.id) for _ in range(3)] == [1, 2, 3]


def test_looks_survive_deleting_and_uploading_again(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        first, again, other = (add_dataset(session, workspace_id) for _ in range(3))
        first.content_hash = again.content_hash = "a" * 64
        other.content_hash = "b" * 64
        session.flush()
        assert datasets.count_test_look(session, first.id) == 1
        assert datasets.count_test_look(session, again.id) == 2
        assert datasets.test_looks(session, other.id) == 0


def test_a_source_is_registered_listed_and_deleted(engine: Engine) -> None:
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session))
        workspace_id, source_id = dataset.workspace_id, new_id("source")
        datasets.insert_source(session, workspace_id, source_id=source_id, name="mine", backbone="resnet18",
                               blob="ws/sources/a", info=INFO, n_classes=2, classes=("a", "b"))  # fmt: skip
        assert [s.classes for s in datasets.list_sources(session, workspace_id).items] == [["a", "b"]]
        job = add_job(session, dataset, sources=[{"ref": source_id, "backbone": "resnet18", "kind": "registered"}])
        with pytest.raises(Conflict) as caught:
            datasets.delete_source(session, workspace_id, source_id)
        assert caught.value.facts == {"needed_by": [job.id]}
    with transaction(engine) as session:
        other = add_workspace(session)
        with pytest.raises(NotFound):
            datasets.delete_source(session, other, source_id)


def test_a_blob_goes_with_its_last_reference(engine: Engine) -> None:
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        for key, owners in {"a": ["x"], "b": ["x", "y"], "c": ["y"]}.items():
            add_blob(session, workspace_id, key, INFO, owners[0])
            for owner in owners:
                add_ref(session, key, owner)
        add_blob(session, workspace_id, "a", INFO._replace(size_bytes=5), "x")
        assert blob_info(session, "a") == INFO._replace(size_bytes=5)
        assert unreferenced(session, ["a", "stray", "b"]) == ["stray"]
        assert drop_refs(session, "x") == ["a"]
        assert drop_ref(session, "b", "x") == []
        assert drop_ref(session, "b", "y") == ["b"]
        assert drop_refs(session, "x", "y", "z") == ["c"]
        assert drop_refs(session) == []
        assert unreferenced(session, ["a", "b", "c"]) == ["a", "b", "c"]


def test_more_keys_than_one_statement_takes(engine: Engine) -> None:
    keys = [f"k{n}" for n in range(1203)]
    with transaction(engine) as session:
        workspace_id = add_workspace(session)
        for key in keys:
            add_blob(session, workspace_id, key, INFO, "x")
        assert unreferenced(session, [*keys, "stray"]) == ["stray"]
        assert drop_refs(session, "x") == sorted(keys)
