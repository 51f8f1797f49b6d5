import pytest
from sqlalchemy import Engine, update

from domain.errors import NotFound
from store import uploads
from store.counts import by_state, oldest_waiting_lot_s, workers_alive
from store.session import reading, transaction
from store.tables import DatasetRow, LotRow, UploadRow, WorkerRow
from store.workers import forget_silent, gone, live_workers, seen
from tests.rows import add_dataset, add_job, add_lot, add_workspace


@pytest.fixture
def upload(engine: Engine) -> UploadRow:
    with transaction(engine) as session:
        dataset = add_dataset(session, add_workspace(session), "UPLOADING")
        return uploads.insert_upload(session, dataset.workspace_id, dataset.id, length=10,
                                     metadata={"filename": "a.zip"}, sha256=None, ttl_s=60)  # fmt: skip


def test_one_writer_at_a_time(engine: Engine, upload: UploadRow) -> None:
    with transaction(engine) as session:
        assert uploads.lock_upload(session, upload.id, 60)
        assert not uploads.lock_upload(session, upload.id, 60)
        uploads.unlock_upload(session, upload.id)
        assert uploads.lock_upload(session, upload.id, -1)  # its holder dies
        assert uploads.lock_upload(session, upload.id, 60)
        uploads.keep_lock(session, upload.id, 60)
        assert not uploads.lock_upload(session, upload.id, 60)


def test_an_offset_moves_from_where_it_is(engine: Engine, upload: UploadRow) -> None:
    with transaction(engine) as session:
        assert uploads.move_offset(session, upload.id, offset_from=0, offset_to=4)
        assert not uploads.move_offset(session, upload.id, offset_from=0, offset_to=4)
        assert uploads.move_offset(session, upload.id, offset_from=4, offset_to=10)
        assert uploads.end_upload(session, upload.id)
        assert not uploads.end_upload(session, upload.id)
    with reading(engine) as session:
        row = uploads.get_upload(session, upload.workspace_id, upload.id)
        assert (row.offset, row.finished) == (10, True)


def test_an_upload_past_its_time_is_gone(engine: Engine, upload: UploadRow) -> None:
    with reading(engine) as session:
        assert uploads.stale_uploads(session) == []
        with pytest.raises(NotFound):
            uploads.get_upload(session, "ws_other", upload.id)
    with transaction(engine) as session:
        session.execute(update(UploadRow).values(expires_at=1.0))
        with pytest.raises(NotFound):
            uploads.get_upload(session, upload.workspace_id, upload.id)
        assert [u.id for u in uploads.stale_uploads(session)] == [upload.id]
        uploads.delete_upload(session, upload.id)
        assert uploads.stale_uploads(session) == []


def test_workers_are_alive_while_they_say_so(engine: Engine) -> None:
    with transaction(engine) as session:
        seen(session, "a", ["control", "trials"], {"device": "cpu"})
        seen(session, "b", ["control"], {})
        seen(session, "a", ["trials"], {"device": "cuda"})
    with reading(engine) as session:
        assert [(w.id, w.facts) for w in live_workers(session, "trials", 60)] == [("a", {"device": "cuda"})]
        assert [w.id for w in live_workers(session, None, 60)] == ["a", "b"]
        assert live_workers(session, None, -1) == []
        assert workers_alive(session, 60) == 2
    with transaction(engine) as session:
        session.execute(update(WorkerRow).where(WorkerRow.id == "a").values(seen_at=1.0))
        forget_silent(session, 3600)
        assert [w.id for w in live_workers(session, None, 1e12)] == ["b"]
        gone(session, "b")
        assert live_workers(session, None, 1e12) == []


def test_what_the_metrics_show(engine: Engine) -> None:
    with transaction(engine) as session:
        assert oldest_waiting_lot_s(session) == 0.0
        job = add_job(session, add_dataset(session, add_workspace(session)), "RUNNING")
        add_lot(session, job, 0)
        session.execute(update(LotRow).values(created_at=LotRow.created_at - 100))
        assert 100 <= oldest_waiting_lot_s(session) < 110
        assert by_state(session, DatasetRow) == {"READY": 1}
