"""What a job may ask for: every refusal says what is legal."""

from typing import Any

import pytest

from domain.catalogue import catalogue
from domain.job import JobSpec
from domain.recipe import refusals
from domain.teaching import fixed_trials
from store.session import reading, transaction
from store.tables import JobRow, TrialRow
from tests.house import CLASSES, House, ask, check_problem, spec_of


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
        ({"budget": {"trials": 3, "patience": 0}}, 422, "validation_error"),
        ({"budget": {"trials": 3, "target": 1.5}, "objective": "accuracy"}, 422, "bad_target"),
        ({"budget": {"trials": 3, "target": -0.5}, "objective": "log_loss"}, 422, "bad_target"),
        ({"budget": {"target": "high"}}, 422, "validation_error"),
        ({"budget": {"patience": 0}}, 422, "validation_error"),
        ({"preset": "perfect"}, 422, "validation_error"),
        ({"space": {"regularizer.l1_sp.alpha": 0.001}}, 422, "part_not_searched"),
        ({"colour": 1}, 422, "validation_error"),
        ({"name": "a\u0007"}, 422, "validation_error"),
        ({"sampler": "astrology"}, 422, "validation_error"),
        ({"sampler": "cmaes", "objectives": ["accuracy", "size_bytes"]}, 422, "sampler_one_objective"),
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
        ({"learn_from": "installation"}, 422, "history_not_pooled"),
        ({"learn_from": "everybody"}, 422, "validation_error"),
        ({"teacher": "somebody"}, 422, "bad_teacher"),
        ({"teacher": "../../etc/passwd"}, 422, "bad_teacher"),
        ({"teacher": "torchvision:resnet9000"}, 422, "unknown_backbone"),
        ({"teacher": "torchvision:smallnet"}, 422, "no_published_weights"),
        ({"teacher": "src_0123456789abcdef"}, 404, "source_not_found"),
        ({"teacher": "best", "anchors": False}, 422, "teacher_needs_anchors"),
        ({"teacher": "ensemble", "anchors": False}, 422, "teacher_needs_anchors"),
        ({"teacher": "best"}, 422, "budget_too_small_for_teacher"),
        ({"teacher": "torchvision:resnet50", "budget": {"trials": 4}}, 422, "budget_too_small_for_teacher"),
        ({"source_dataset_id": "ds_0123456789abcdef"}, 404, "dataset_not_found"),
        ({"source_dataset_id": "no dataset"}, 422, "bad_dataset"),
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
    source = house.add_source("resnet34", classes=["a", "b"])
    (found,) = spec_of(house, sources=[source]).sources
    assert (found.kind, found.backbone, found.classes, found.licence) == ("registered", "resnet34", ("a", "b"), "MIT")


def test_a_teacher_brings_distillation(house: House) -> None:
    teacher = house.add_job("COMPLETE")
    spec = spec_of(house, teacher=teacher, sources=["torchvision:resnet18"])
    assert spec.teacher is not None
    assert spec.teacher.kind == "job"
    assert spec.teacher.recipe is not None
    assert (spec.teacher.recipe.backbone, spec.teacher.recipe.data.resolution) == ("resnet18", 224)
    assert list(house.site.blobs.read(str(spec.teacher.blob))) == [b"w" * 99]
    assert "soft_targets" in options(spec, "distillation")


@pytest.mark.parametrize("ref", ["best", "ensemble"])
def test_a_job_learns_from_its_own_trials(house: House, ref: str) -> None:
    answer = ask(house, teacher=ref, budget={"trials": 4}, sources=["torchvision:resnet18"])
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"]["teacher"] == ref
    spec = spec_of(house, teacher=ref, budget={"wall_s": 60}, sources=["torchvision:resnet18"])
    assert spec.teacher is not None
    assert (spec.teacher.kind, spec.teacher.ref, spec.teacher.blob) == (ref, ref, None)
    assert "soft_targets" in options(spec, "distillation")
    assert [name for name, _ in fixed_trials(spec, catalogue())] == ["linear_probe", "fine_tuning", "l2_sp"]


def test_a_larger_source_teaches_once_it_is_fine_tuned(house: House) -> None:
    """What the job has fixed holds for it too, but for the parts, and for what its network cannot take."""
    space = {"data.flip": False, "distillation": "soft_targets", "regularizer": "l2_sp", "data.resolution": 32}
    sources = ["scratch:smallnet"]
    refused = check_problem(ask(house, teacher="torchvision:resnet50", sources=sources, space=space), 422,
                            "recipe_refused")  # fmt: skip
    assert "l2_sp" in refused["detail"]
    del space["regularizer"]
    spec = spec_of(house, teacher="torchvision:resnet50", sources=sources, space=space)
    assert spec.teacher is not None
    assert (spec.teacher.kind, spec.teacher.ref) == ("source", "torchvision:resnet50")
    assert [s.ref for s in spec.sources] == ["scratch:smallnet"], "the teacher is none of the sources"
    fixed = dict(fixed_trials(spec, catalogue()))
    assert list(fixed) == ["scratch", "teacher"]
    assert "distillation" not in fixed["scratch"], "an anchor is never taught"
    recipe = spec.recipe(fixed["teacher"], seed=1)
    assert (recipe.source, recipe.backbone) == ("torchvision:resnet50", "resnet50")
    assert (recipe.data.flip, recipe.data.resolution, recipe.optimizer.inner_ratio) == (False, 224, 0.1)
    assert {slot: part.name for slot, part in recipe.parts.items()} == {"regularizer": "l2", "schedule": "freeze"}
    assert refusals(recipe, spec.provided_by(recipe.source), catalogue()) == []


def test_a_registered_source_that_teaches_cannot_be_deleted(house: House) -> None:
    source = house.add_source()
    job = ask(house, teacher=source, sources=["scratch:smallnet"]).json()["id"]
    assert check_problem(house.ask("DELETE", f"/v1/sources/{source}"), 409, "still_needed")["needed_by"] == [job]


def test_a_source_dataset_brings_source_data_and_is_kept(house: House) -> None:
    related = house.add_dataset(classes=["oak", "elm"], content_hash="cd" * 32)
    answer = ask(house, source_dataset_id=related)
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"]["source_dataset_id"] == related
    job = answer.json()["id"]
    with reading(house.site.engine) as session:
        spec = JobSpec.model_validate(session.get_one(JobRow, job).spec)
    assert "source_data" in spec.provided
    assert check_problem(house.ask("DELETE", f"/v1/datasets/{related}"), 409, "still_needed")["needed_by"] == [job]


def test_a_source_dataset_is_ready_and_another_one(house: House) -> None:
    target = house.add_dataset()
    for other in (target, house.add_dataset()):  # another upload of the same content is no other
        check_problem(ask(house, dataset_id=target, source_dataset_id=other), 422, "source_dataset_is_target")
    rejected = house.add_dataset("REJECTED")
    check_problem(ask(house, dataset_id=target, source_dataset_id=rejected), 409, "dataset_not_ready")


def test_a_source_head_is_offered_only_where_there_is_one(house: House) -> None:
    """Published weights, named classes, or a linear head of ours; and a backbone that can carry it."""
    carried = {b.name for b in catalogue().backbones if "source_head" in b.provides}
    sources = ["torchvision:resnet18", "scratch:resnet18", house.add_source(classes=["a", "b"]), house.add_source(),
               house.add_job("COMPLETE")]  # fmt: skip
    spec = spec_of(house, sources=sources)
    offered = ["source_head" in spec.provided_by(s.ref) for s in spec.sources]
    assert offered == [has and "resnet18" in carried for has in (True, False, True, False, True)]
    assert ["start" in spec.provided_by(s.ref) for s in spec.sources] == [True, False, True, True, True]


@pytest.mark.parametrize(
    "parts",
    [
        {"surgery": {"name": "lora", "params": {"rank": 4}}},
        {"surgery": {"name": "residual_adapter", "params": {}}},
        {"distillation": {"name": "born_again", "params": {"ensemble": True}}},
    ],
)
def test_a_network_of_another_structure_teaches_but_is_no_source(house: House, parts: dict[str, Any]) -> None:
    job = house.add_job("COMPLETE")
    with transaction(house.site.engine) as session:
        best = session.get_one(TrialRow, session.get_one(JobRow, job).best_trial_id)
        best.recipe = {**best.recipe, **parts}
    name = next(iter(parts.values()))["name"]
    assert name in check_problem(ask(house, sources=[job]), 422, "source_not_plain")["detail"]
    spec = spec_of(house, teacher=job, sources=["torchvision:resnet18"])
    assert spec.teacher is not None
    assert spec.teacher.recipe is not None
    assert name in {part.name for part in spec.teacher.recipe.parts.values()}


FSP = {"feature": "fsp", "feature.fsp.guide": "teacher"}


@pytest.mark.parametrize(
    ("teacher", "sources"),
    [("a job", ["torchvision:mobilenet_v2"]), ("torchvision:resnet50", ["torchvision:resnet18"]),
     ("best", ["torchvision:resnet18", "torchvision:mobilenet_v2"]),
     ("ensemble", ["torchvision:resnet18", "torchvision:mobilenet_v2"])],
)  # fmt: skip
def test_fsp_with_a_teacher_of_other_widths_is_refused_with_the_widths(
    house: House, teacher: str, sources: list[str]
) -> None:
    ref = house.add_job("COMPLETE") if teacher == "a job" else teacher
    found = check_problem(
        ask(house, teacher=ref, sources=sources, space=FSP, budget={"trials": 9}), 422, "recipe_refused"
    )
    assert {r["code"] for r in found["refusals"]} == {"guide_differs"}
    assert "maps of equal widths" in found["detail"]
    assert "512" in found["detail"], "the widths of resnet18's last maps are told"


def test_fsp_with_a_teacher_of_its_widths_is_taken_and_the_source_guides_where_the_teacher_cannot(house: House) -> None:
    teacher = house.add_job("COMPLETE")  # a resnet18
    spec = spec_of(house, teacher=teacher, sources=["torchvision:resnet34"], space=FSP)
    assert options(spec, "feature.fsp.guide") == ("teacher",)
    spec = spec_of(house, teacher=teacher, sources=["torchvision:mobilenet_v2"], space={"feature": "fsp"})
    assert options(spec, "feature.fsp.guide") == ("source",)
    both = spec_of(house, teacher=teacher, sources=["torchvision:resnet34", "torchvision:mobilenet_v2"], space=FSP)
    assert options(both, "source") == ("torchvision:resnet34",), "the other one is never proposed"


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
