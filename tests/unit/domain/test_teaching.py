"""Teachers in a job's spec: older ones are read, and what making one costs stays within the budget of time."""

from typing import Any

from domain.catalogue import catalogue
from domain.default_space import MIN_STEPS, anchors, job_space
from domain.job import Budget, JobSpec, Objective, ResolvedSource, Teacher
from domain.teaching import fixed_trials, teacher_in_time, teacher_values

SMALL = ResolvedSource(ref="scratch:smallnet", backbone="smallnet", kind="scratch")
LARGE = ResolvedSource(ref="torchvision:resnet50", backbone="resnet50", kind="torchvision", n_classes=1000)


def spec_of(*sources: ResolvedSource, overrides: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    space = job_space("classification", sources, catalogue(), n_train=400, has_teacher=True, overrides=overrides)
    spec = JobSpec(
        task="classification", sources=sources, space=space, budget=Budget(wall_s=400), n_folds=1,
        objectives=(Objective(name="accuracy"),),
    )  # fmt: skip
    return spec.model_copy(update=changes)


def taught_by_source(**changes: Any) -> JobSpec:
    teacher = Teacher(kind="source", ref=LARGE.ref, source=LARGE, values=teacher_values(spec_of(LARGE)))
    return spec_of(SMALL, teacher=teacher, **changes)


def test_a_teacher_stored_by_an_older_version_is_read() -> None:
    old = {"ref": "job_1", "backbone": "resnet18", "head": "mlp", "blob": "ws/trials/t/1/weights", "resolution": 96}
    teacher = Teacher.model_validate(old)
    assert (teacher.kind, teacher.ref, teacher.blob, teacher.trained_here) == ("job", "job_1", old["blob"], False)
    assert teacher.recipe is not None
    assert (teacher.recipe.backbone, teacher.recipe.head.kind, teacher.recipe.data.resolution) == (
        "resnet18",
        "mlp",
        96,
    )
    assert Teacher.model_validate(teacher.model_dump(mode="json")) == teacher


def test_what_a_job_and_its_source_offer() -> None:
    spec = taught_by_source(source_dataset_id="ds_1")
    assert spec.provided == {"teacher", "source_data"}
    assert spec.provided_by("scratch:smallnet") == {"teacher", "source_data"}
    assert spec.provided_by(LARGE.ref) == {"teacher", "source_data", "start", "source_head"}
    assert spec_of(SMALL).provided == set()


def test_fixed_recipes_are_the_anchors_without_what_learns_from_a_teacher() -> None:
    job = Teacher(kind="job", ref="job_1", trial_id="tr_1", blob="b")
    spec = spec_of(SMALL, overrides={"distillation": "soft_targets"}, teacher=job)
    ((name, values),) = anchors(spec)
    assert values["distillation"] == "soft_targets"
    untaught = {path: value for path, value in values.items() if not path.startswith("distillation")}
    assert fixed_trials(spec, catalogue()) == [(name, untaught)]
    assert fixed_trials(spec.model_copy(update={"anchors": False}), catalogue()) == []


def test_making_a_teacher_takes_a_quarter_of_the_time_at_most() -> None:
    spec = taught_by_source()
    assert spec.teacher is not None
    steps = int(spec.teacher.values["steps"])
    for s_per_trial, expected in ((50.0, steps), (100.0, steps), (200.0, round(steps / 2)), (1e9, MIN_STEPS)):
        fitted = teacher_in_time(spec, s_per_trial)
        assert fitted.teacher is not None
        assert fitted.teacher.values["steps"] == expected, s_per_trial
    chosen = spec.model_copy(update={"chosen": ("steps",)})
    assert teacher_in_time(chosen, 1e9) == chosen
    unlimited = spec.model_copy(update={"budget": Budget(trials=9)})
    assert teacher_in_time(unlimited, 1e9) == unlimited
