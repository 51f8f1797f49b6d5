"""Teachers that a job trains itself: nobody is taught before they are there, and whom a trial has it keeps."""

from typing import Any

import pytest

from domain.catalogue import PartFacts, catalogue
from domain.errors import GraftError
from domain.job import Budget, ResolvedSource, Teacher
from domain.recipe import Part, Recipe
from domain.space import Choice
from domain.states import TrialState
from domain.teaching import needs, teacher_values, without_teacher
from store.leases import hold
from store.moves import become
from store.tables import EventRow, LotRow, TrialRow
from store.trials import best_trials
from tests.unit.worker.conftest import Workshop, make_spec
from worker.advance import advance
from worker.claims import Claimed, claim_lot
from worker.teachers import teacher_files

ANCHORS = ["linear_probe", "fine_tuning", "l2_sp"]
TAUGHT = {"distillation": "soft_targets"}
LARGER = ResolvedSource(ref="torchvision:resnet50", backbone="resnet50", kind="torchvision")


def larger() -> Teacher:
    values = teacher_values(make_spec(sources=(LARGER,)))
    return Teacher(kind="source", ref=LARGER.ref, source=LARGER, values={**values, "source": LARGER.ref})


def own(kind: str) -> Teacher:
    return larger() if kind == "source" else Teacher.model_validate({"kind": kind, "ref": kind})


def taught_job(place: Workshop, kind: str, **changes: Any) -> str:
    """A job whose every searched trial learns from a teacher, and room for all of them at once."""
    return place.job(overrides=TAUGHT, teacher=own(kind), parallel=20, **{"budget": Budget(trials=8), **changes})


def names(place: Workshop, job_id: str) -> list[str | None]:
    return [t.anchor for t in place.trials(job_id)]


def claim(place: Workshop, trial: TrialRow) -> Claimed:
    claimed = claim_lot(place.context, trial.lot_id)
    assert claimed is not None
    return claimed


def move(place: Workshop, claimed: Claimed, trial: str, lot: str, **changes: Any) -> None:
    with place.context.transaction() as session:
        held = hold(session, LotRow, claimed.lot_id, claimed.fence)
        become(session, session.get_one(TrialRow, claimed.trials[0].id), trial, **changes)
        become(session, held, lot)


def teachers_of(place: Workshop, trial: TrialRow) -> list[str]:
    with place.context.reading() as session:
        return [t["trial_id"] for t in session.get_one(TrialRow, trial.id).attrs["teachers"]]


def test_nothing_is_searched_before_the_first_anchor_is_complete(place: Workshop) -> None:
    job_id = taught_job(place, "best")
    for _ in range(2):
        advance(place.context, job_id)
        assert names(place, job_id) == ANCHORS
    assert all(Recipe.model_validate(t.recipe).distillation is None for t in place.trials(job_id))
    place.end(place.trials(job_id)[0], value=0.5)
    advance(place.context, job_id)
    trials = place.trials(job_id)
    assert names(place, job_id) == [*ANCHORS, *[None] * 5]
    assert {t.recipe["distillation"]["name"] for t in trials[3:]} == {"soft_targets"}


def test_an_ensemble_waits_for_three_or_for_the_last_anchor(place: Workshop) -> None:
    job_id = taught_job(place, "ensemble")
    advance(place.context, job_id)
    first, second, third = place.trials(job_id)
    place.end(first, value=0.5)
    place.end(second, value=0.6)
    advance(place.context, job_id)
    assert names(place, job_id) == ANCHORS
    place.end(third, "FAILED", error={"code": "diverged", "detail": "loss is inf"})
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 8
    taught = place.trials(job_id)[3]
    claim(place, taught)
    assert teachers_of(place, taught) == [second.id, first.id], "the best first; two are better than none"


def test_an_ensemble_outlives_a_job_that_keeps_one_network(place: Workshop) -> None:
    """The second and third best would be freed with keep_top=1; they are needed to teach."""
    job_id = taught_job(place, "ensemble", keep_top=1)
    advance(place.context, job_id)
    for trial, value in zip(place.trials(job_id), (0.5, 0.6, 0.4), strict=True):
        place.end(trial, value=value)
    advance(place.context, job_id)
    students = place.trials(job_id)[3:]
    for student, value in zip(students[:3], (0.7, 0.8, 0.9), strict=True):
        move(place, claim(place, student), "COMPLETE", "DONE", value=value,
             checkpoint_blob=place.trials(job_id)[0].checkpoint_blob)  # fmt: skip
    advance(place.context, job_id)
    claim(place, students[3])
    assert teachers_of(place, students[3]) == [s.id for s in reversed(students[:3])]


def test_a_larger_source_is_trained_in_its_own_trial_and_wins_nothing(place: Workshop) -> None:
    job_id = taught_job(place, "source", budget=Budget(trials=5))
    advance(place.context, job_id)
    trials = place.trials(job_id)
    assert names(place, job_id) == [*ANCHORS, "teacher"]
    assert (trials[3].recipe["source"], trials[3].recipe["backbone"]) == ("torchvision:resnet50", "resnet50")
    for trial, value in zip(trials[:3], (0.5, 0.6, 0.55), strict=True):
        place.end(trial, value=value)
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 4, "the anchors teach nobody here"
    place.end(trials[3], value=0.99)
    advance(place.context, job_id)
    student = place.trials(job_id)[4]
    assert student.recipe["source"] == "torchvision:resnet18"
    claimed = claim(place, student)
    assert teachers_of(place, student) == [trials[3].id]
    move(place, claimed, "COMPLETE", "DONE", value=0.7)
    advance(place.context, job_id)
    assert place.state(job_id).state == "FINISHING"
    with place.context.reading() as session:
        best = best_trials(session, job_id, direction="maximize", limit=9)
    assert [t.id for t in best] == [student.id, *(trials[n].id for n in (1, 2, 0))]


@pytest.mark.parametrize("kind", ["best", "ensemble", "source"])
def test_a_job_whose_teachers_all_fail_has_failed(place: Workshop, kind: str) -> None:
    job_id = taught_job(place, kind)
    advance(place.context, job_id)
    for n, trial in enumerate(place.trials(job_id)):
        assert place.state(job_id).state == "RUNNING"
        place.end(trial, "FAILED", error={"code": f"reason_{n}", "detail": f"reason {n}"})
        if n < 2:  # then three alike or not, the job is over at the last
            advance(place.context, job_id)
    advance(place.context, job_id)
    job = place.state(job_id)
    assert (job.state, job.stopped_by) == ("FAILED", "failures")
    assert job.error is not None
    assert job.error["code"] == "no_teacher"
    assert "reason" in job.error["detail"]


def test_where_only_the_teacher_failed_the_anchors_are_the_result(place: Workshop) -> None:
    job_id = taught_job(place, "source")
    advance(place.context, job_id)
    *anchors, teacher = place.trials(job_id)
    for trial in anchors:
        place.end(trial, value=0.5)
    place.end(teacher, "FAILED", error={"code": "out_of_memory", "detail": "out of memory"})
    advance(place.context, job_id)
    job = place.state(job_id)
    assert (job.state, job.stopped_by) == ("FINISHING", "failures")
    with place.context.reading() as session:
        told = [e.body["text"] for e in session.query(EventRow).filter_by(job_id=job_id, kind="job.log")]
    assert any("none of the trials that were to teach" in text and "out of memory" in text for text in told)


def test_a_trial_keeps_its_teacher_and_the_teacher_its_weights(place: Workshop) -> None:
    """Claimed, handed back, claimed again: the same teacher, though a better one has come and its weights would go."""
    job_id = taught_job(place, "best", keep_top=1)
    advance(place.context, job_id)
    for trial, value in zip(place.trials(job_id), (0.5, 0.6, 0.4), strict=True):
        place.end(trial, value=value)
    advance(place.context, job_id)
    first, second, third = place.trials(job_id)[3:6]
    place.end(first, value=0.7)
    claimed = claim(place, second)
    assert teachers_of(place, second) == [first.id]
    assert claimed.trials[0].attrs["teachers"][0]["blob"].endswith("weights.safetensors")
    move(place, claimed, "WAITING", "WAITING")
    place.end(third, value=0.9)
    advance(place.context, job_id)
    assert f"{first.id}/weights.safetensors" in place.kept(), "a trial that waits learns from it"
    again = claim(place, second)
    assert teachers_of(place, second) == [first.id]
    move(place, again, "COMPLETE", "DONE", value=0.1)
    advance(place.context, job_id)
    assert f"{first.id}/weights.safetensors" not in place.kept()
    assert f"{third.id}/weights.safetensors" in place.kept()


def test_a_paused_trial_and_a_cancelled_job(place: Workshop) -> None:
    job_id = taught_job(place, "best", keep_top=1)
    advance(place.context, job_id)
    place.end(place.trials(job_id)[0], value=0.5)
    advance(place.context, job_id)
    first, second, third = place.trials(job_id)[3:6]
    place.end(first, value=0.7)
    move(place, claim(place, second), "PAUSED", "WAITING")
    place.end(third, value=0.9)
    advance(place.context, job_id)
    assert f"{first.id}/weights.safetensors" in place.kept()
    with place.context.transaction() as session:
        become(session, session.get_one(TrialRow, second.id), TrialState.CANCELLED)
    advance(place.context, job_id)
    assert f"{first.id}/weights.safetensors" not in place.kept()


def test_a_trial_without_anybody_to_teach_it_is_refused(place: Workshop) -> None:
    """It cannot happen while the rows are whole; if it does, the trial says so and the others go on."""
    job_id = taught_job(place, "best")
    advance(place.context, job_id)
    first = place.trials(job_id)[0]
    place.end(first, value=0.5)
    advance(place.context, job_id)
    place.write(TrialRow, first.id, checkpoint_blob=None)
    claimed = claim(place, place.trials(job_id)[3])
    with pytest.raises(GraftError, match="no_teacher"):
        teacher_files(place.context, claimed.spec, claimed.trials[0])


def test_the_job_that_teaches_is_told_with_the_trial(place: Workshop) -> None:
    recipe = Recipe(task="classification", source="torchvision:resnet18", backbone="resnet18")
    teacher = Teacher(kind="job", ref="job_1", trial_id="tr_1", blob="ws/trials/tr_1/1/weights", recipe=recipe)
    job_id = place.job(overrides=TAUGHT, teacher=teacher, parallel=20)
    advance(place.context, job_id)
    trials = place.trials(job_id)
    assert len(trials) == 6, "nothing has to be waited for"
    assert claim(place, trials[0]).trials[0].attrs == {}, "an anchor is not taught"
    assert claim(place, trials[3]).trials[0].attrs["teachers"] == [{"trial_id": "tr_1", "blob": teacher.blob}]


def test_a_part_that_one_value_makes_learn_from_a_teacher_counts() -> None:
    guides = Choice(options=("source", "teacher"), default="source")
    guided = PartFacts(
        slot="feature", name="guided", summary="", space={"guide": guides},
        needs_by={"guide": {"source": "start", "teacher": "teacher"}},
    )  # fmt: skip
    facts = catalogue().model_copy(update={"parts": (*catalogue().parts, guided)})
    recipe = Recipe(
        task="classification", source="torchvision:resnet18", backbone="resnet18",
        feature=Part(name="guided", params={"guide": "teacher"}), regularizer=Part(name="l2_sp"),
    )  # fmt: skip
    assert needs(recipe, facts) == {"teacher", "start"}
    assert set(without_teacher(recipe, facts).parts) == {"regularizer"}
    by_source = recipe.model_copy(update={"feature": Part(name="guided", params={})})
    assert without_teacher(by_source, facts) == by_source
