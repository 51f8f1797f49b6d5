import pytest

import graft
from graft.answers import ApiKey, Dataset, Finding, Interval, Job, Source, read, read_page
from graft.errors import GraftApiError

INTERVAL = {"value": 0.9, "low": 0.8, "high": 0.95, "level": 0.95}
JOB = {
    "id": "job_1", "name": "n", "dataset_id": "ds_1", "state": "COMPLETE", "spec": {"objective": "log_loss"},
    "progress": {"trials_done": 3, "trials_total": 5, "by_state": {"COMPLETE": 3}, "share": 0.6, "later_field": 1},
    "best": {"trial_id": "tr_1", "number": 2, "value": 0.31, "anchor": None, "recipe": {}}, "cost_s": 3.0,
    "result": {
        "best_trial_id": "tr_1", "best_number": 2, "val": 0.31, "metrics": {"accuracy": 0.9}, "test_accuracy": INTERVAL,
        "n_test": 40, "n_test_looks": 1, "verdict": "It helped.", "selection_bias": None,
        "anchors": [{"name": "linear_probe", "trial_id": "tr_0", "number": 0, "val": 0.4, "test_accuracy": INTERVAL,
                     "lift": INTERVAL}],
    },
}  # fmt: skip


def test_nested_answers_are_typed_and_unknown_fields_left_out() -> None:
    job = read(Job, {**JOB, "of_the_future": [1]})
    assert job.finished
    assert job.progress.trials_total == 5
    assert job.best is not None
    assert job.best.number == 2
    assert job.result is not None
    assert job.result.anchors[0].lift == Interval(0.9, 0.8, 0.95, 0.95)
    assert not read(Job, {**JOB, "state": "RUNNING", "best": None, "result": None}).finished


def test_a_missing_field_is_told_apart_from_a_bug() -> None:
    with pytest.raises(GraftApiError, match="lacks 'dataset_id'"):
        read(Job, {"id": "job_1", "name": "n", "state": "RUNNING"})
    with pytest.raises(GraftApiError, match="got list"):
        read(Dataset, [])


def test_pages_sources_findings() -> None:
    page = read_page(Source, {"items": [{"ref": "torchvision:resnet18"}, {"id": "src_1"}], "next_cursor": "c"})
    assert [s.ref for s in page.items] == ["torchvision:resnet18", "src_1"]
    assert page.next_cursor == "c"
    facts = {"id": "ds_1", "name": "x", "task": "classification", "state": "READY"}
    finding = {"code": "image_corrupt", "severity": "error", "detail": "cut off", "path": "a/b.jpg", "row": None}
    assert read(Dataset, {**facts, "findings": [finding]}).findings == (
        Finding("image_corrupt", "error", "cut off", "a/b.jpg"),
    )


def test_a_key_does_not_print_itself() -> None:
    assert "secret" not in repr(read(ApiKey, {"id": "key_1", "name": "n", "key": "graft_x.secret"}))


def test_every_public_name_is_there() -> None:
    for name in graft.__all__:
        assert getattr(graft, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = graft.Nothing
