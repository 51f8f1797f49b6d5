"""What a job may ask for: every refusal says what is legal."""

from typing import Any

import pytest

from domain.catalogue import catalogue
from domain.ids import new_id
from domain.job import JobSpec
from store.session import reading, transaction
from store.tables import JobRow, SourceRow
from tests.house import CLASSES, House, check_problem


def ask(house: House, **body: Any) -> Any:
    body = {"dataset_id": house.add_dataset(), "budget": {"trials": 3}} | body
    return house.ask("POST", "/v1/jobs", json=body)


def spec_of(house: House, **body: Any) -> JobSpec:
    answer = ask(house, **body)
    assert answer.status_code == 201, answer.text
    with reading(house.site.engine) as session:
        return JobSpec.model_validate(session.get_one(JobRow, answer.json()["id"]).spec)


def options(spec: JobSpec, path: str) -> tuple[Any, ...]:
    """The values of a choice that are left."""
    if path in spec.space.fixed:
        return (spec.space.fixed[path],)
    return next(d.range.options for d in spec.space.dimensions if d.path == path)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"budget": {}}, 422, "validation_error"),
        ({"budget": {"trials": 0}}, 422, "validation_error"),
        ({"budget": {"trials": -5}}, 422, "validation_error"),
        ({"budget": {"trials": 10**9}}, 422, "validation_error"),
        ({"budget": {"wall_s": -1}}, 422, "validation_error"),
        ({"budget": {"trials": 1.5}}, 422, "validation_error"),
        ({"budget": None}, 422, "validation_error"),
        ({"colour": 1}, 422, "validation_error"),
        ({"name": "a\u0007"}, 422, "validation_error"),
        ({"sampler": "astrology"}, 422, "validation_error"),
        ({"pruner": "axe"}, 422, "validation_error"),
        ({"objective": "fame"}, 422, "validation_error"),
        ({"n_folds": 9}, 422, "validation_error"),
        ({"sources": []}, 422, "validation_error"),
        ({"sources": ["torchvision:resnet9000"]}, 422, "unknown_backbone"),
        ({"sources": ["scratch:resnet9000"]}, 422, "unknown_backbone"),
        ({"sources": ["resnet18"]}, 422, "bad_source"),
        ({"sources": ["torchvision:smallnet"]}, 422, "no_published_weights"),
        ({"sources": ["src_0123456789abcdef"]}, 404, "source_not_found"),
        ({"sources": ["job_0123456789abcdef"]}, 404, "job_not_found"),
        ({"sources": ["../../etc/passwd"]}, 422, "bad_source"),
        ({"teacher": "torchvision:resnet18"}, 422, "bad_teacher"),
        ({"teacher": "job_0123456789abcdef"}, 404, "job_not_found"),
        ({"dataset_id": "ds_0123456789abcdef"}, 404, "dataset_not_found"),
        ({"dataset_id": "no dataset"}, 422, "bad_dataset"),
        ({"space": {"regularizer": "magic"}}, 422, "unknown_regularizer"),
        ({"space": {"colour": 1}}, 422, "unknown_dimension"),
        ({"space": {"optimizer.lr_head": 0}}, 422, "bad_dimension"),
        ({"space": {"optimizer.lr_head": {"low": 0.1, "high": 0.01}}}, 422, "bad_dimension"),
        ({"space": {"optimizer.lr_head": {"low": -1}}}, 422, "bad_dimension"),
        ({"space": {"optimizer.lr_head": {}}}, 422, "validation_error"),
        ({"space": {"optimizer.lr_head": []}}, 422, "bad_dimension"),
        ({"space": {"optimizer.lr_head": None}}, 422, "validation_error"),
        ({"space": {"data.batch_size": True}}, 422, "bad_dimension"),
        ({"space": {"batch_norm": {"low": 1}}}, 422, "bad_dimension"),
        ({"space": {"distillation": "soft_targets"}}, 422, "recipe_refused"),
        ({"space": {"regularizer": "l2_sp"}, "sources": ["scratch:smallnet"]}, 422, "recipe_refused"),
    ],
)
def test_refusals(house: House, body: dict[str, Any], status: int, code: str) -> None:
    check_problem(ask(house, **body), status, code)
    assert house.ask("GET", "/v1/jobs").json()["items"] == []


def test_unknown_names_come_with_the_legal_list(house: House) -> None:
    found = check_problem(ask(house, sources=["torchvision:resnet9000"]), 422, "unknown_backbone")
    assert found["legal"] == sorted(b.name for b in catalogue().backbones)
    found = check_problem(ask(house, space={"regularizer": "magic"}), 422, "unknown_regularizer")
    assert "l2_sp" in found["legal"]
    found = check_problem(ask(house, space={"colour": 1}), 422, "unknown_dimension")
    assert "optimizer.lr_head" in found["legal"]


def test_a_refused_part_says_what_it_lacks(house: House) -> None:
    found = check_problem(ask(house, space={"distillation": "soft_targets"}), 422, "recipe_refused")
    assert found["refusals"][0]["code"] == "part_needs"
    assert "teacher" in found["detail"]


@pytest.mark.parametrize("state", ["UPLOADING", "CHECKING", "REJECTED"])
def test_the_dataset_must_be_ready(house: House, state: str) -> None:
    if state == "UPLOADING":
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "9"}
        dataset = house.ask("POST", "/v1/uploads", headers=headers).headers["graft-dataset-id"]
    else:
        dataset = house.add_dataset(state)
    assert check_problem(ask(house, dataset_id=dataset), 409, "dataset_not_ready")["state"] == state


def test_fixing_and_narrowing(house: House) -> None:
    space = {
        "regularizer": ["l2", "l2_sp"], "optimizer.lr_head": {"low": 0.01}, "batch_norm": "eval",
        "regularizer.l2_sp.alpha": 0.1,
    }  # fmt: skip
    spec = spec_of(house, space=space, sources=["torchvision:resnet18"])
    dimensions = {d.path: d for d in spec.space.dimensions}
    assert options(spec, "regularizer") == ("l2", "l2_sp")
    assert dimensions["optimizer.lr_head"].range.low == 0.01  # type: ignore[union-attr]
    assert spec.space.fixed["batch_norm"] == "eval"
    assert options(spec, "regularizer.l2_sp.alpha") == (0.1,)
    assert spec.space.fixed["source"] == "torchvision:resnet18"


def test_from_scratch_nothing_is_searched_that_needs_a_start(house: House) -> None:
    spec = spec_of(house, sources=["scratch:smallnet"])
    assert "l2_sp" not in options(spec, "regularizer")
    assert [s.kind for s in spec.sources] == ["scratch"]


def test_doubled_sources_count_once(house: House) -> None:
    spec = spec_of(house, sources=["torchvision:resnet18", "torchvision:resnet18"])
    assert [s.ref for s in spec.sources] == ["torchvision:resnet18"]


def test_a_finished_job_is_a_source(house: House) -> None:
    job = house.add_job("COMPLETE")
    (source,) = spec_of(house, sources=[job]).sources
    assert (source.kind, source.backbone, source.classes) == ("job", "resnet18", tuple(CLASSES))
    assert source.blob is not None
    assert list(house.site.blobs.read(source.blob)) == [b"w" * 99]
    # the licence is that of the weights the job itself came from
    published = catalogue().backbone("resnet18").weights[0].licence
    assert source.licence == published


def test_an_unfinished_job_is_no_source(house: House) -> None:
    job = house.add_job("RUNNING")
    assert check_problem(ask(house, sources=[job]), 409, "not_complete")["state"] == "RUNNING"
    assert check_problem(ask(house, teacher=job), 409, "not_complete")["state"] == "RUNNING"


def test_a_registered_source_is_resolved(house: House) -> None:
    source = new_id("source")
    blob = house.keep_blob(source, f"{house.workspace_id}/sources/{source}/weights.safetensors", b"weights")
    with transaction(house.site.engine) as session:
        session.add(
            SourceRow(
                id=source,
                workspace_id=house.workspace_id,
                name="mine",
                backbone="resnet34",
                blob=blob,
                size_bytes=7,
                sha256="0" * 64,
                n_classes=2,
                classes=["a", "b"],
                licence="MIT",
            )
        )
    (found,) = spec_of(house, sources=[source]).sources
    assert (found.kind, found.backbone, found.classes, found.licence) == ("registered", "resnet34", ("a", "b"), "MIT")


def test_a_teacher_brings_distillation(house: House) -> None:
    teacher = house.add_job("COMPLETE")
    spec = spec_of(house, teacher=teacher, sources=["torchvision:resnet18"])
    assert spec.teacher is not None
    assert (spec.teacher.backbone, spec.teacher.head, spec.teacher.resolution) == ("resnet18", "linear", 224)
    assert "soft_targets" in options(spec, "distillation")


def test_a_teacher_of_other_classes_is_refused(house: House) -> None:
    teacher = house.add_job("COMPLETE")
    other = house.add_dataset(classes=["rose", "daisy", "tulip"])
    found = check_problem(ask(house, dataset_id=other, teacher=teacher), 422, "teacher_classes_differ")
    assert (found["teacher"], found["dataset"]) == (CLASSES, ["rose", "daisy", "tulip"])


def test_every_backbone_of_the_catalogue_can_be_asked_for(house: House) -> None:
    dataset = house.add_dataset()
    for backbone in catalogue().backbones:
        kind = "torchvision" if backbone.weights else "scratch"
        answer = ask(house, dataset_id=dataset, sources=[f"{kind}:{backbone.name}"])
        assert answer.status_code == 201, (backbone.name, answer.text)


def test_every_part_of_the_catalogue_is_taken_or_refused_with_a_reason(house: House) -> None:
    dataset = house.add_dataset()
    for part in catalogue().parts:
        answer = ask(house, dataset_id=dataset, sources=["torchvision:resnet18"], space={part.slot: part.name})
        if answer.status_code != 201:
            assert check_problem(answer, 422, "recipe_refused")["refusals"], part.name
