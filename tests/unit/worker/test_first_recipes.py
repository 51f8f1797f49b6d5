"""What a job tries first: its workspace's past, nobody else's, else what the literature says; over real rows."""

from typing import Any

import pytest

from domain.default_space import at_defaults
from domain.history import Meta
from domain.job import Budget, JobSpec, Values
from store.jobs import delete_job, set_facts
from store.moves import become
from store.tables import JobRow, TrialRow
from store.trials import NewTrial, insert_lot
from tests.unit.worker.conftest import SOURCE, Workshop, make_spec
from worker.advance import advance
from worker.first_recipes import warm_started

META = Meta(n_train=300, n_classes=2, per_class_mean=150.0, per_class_min=150, resolution=224, source=SOURCE.ref,
            backbone="resnet18", probe_accuracy=0.8, chance=0.5)  # fmt: skip
ESTIMATE: dict[str, Any] = {"s_per_trial": 1.0, "meta": META.model_dump()}
TWELVE = Budget(trials=12)  # three anchors, nine searched: three recipes at most


def values_with(**changed: Any) -> Values:
    return at_defaults(make_spec(), SOURCE.ref) | {path.replace("__", "."): v for path, v in changed.items()}


BEST = values_with(optimizer__lr_head=0.05, optimizer__momentum=0.0, data__mixup_alpha=0.2, data__augmentation=0.9)
GOOD = values_with(optimizer__lr_head=0.002, optimizer__inner_ratio=0.9, schedule__freeze__depth=3, data__batch_size=16)


def add_past(place: Workshop, meta: Meta = META) -> JobRow:
    """A finished job in a workspace of its own: an anchor, a recipe that is worse, a good one and the best."""
    job_id = place.job(parallel=1)
    with place.context.transaction() as session:
        spec = make_spec()
        for number, (values, value) in enumerate([
            (values_with(), 0.6), (values_with(steps=200), 0.55), (GOOD, 0.7), (BEST, 0.8)
        ]):  # fmt: skip
            recipe = spec.recipe(values, seed=0).model_dump(mode="json")
            lot = insert_lot(session, job_id, [NewTrial(number, values, recipe, "l2_sp" if number == 0 else None)])
            assert lot is not None
            trial = session.query(TrialRow).filter_by(lot_id=lot.id).one()
            become(session, trial, "RUNNING")
            become(session, trial, "COMPLETE", value=value)
            become(session, lot, "RUNNING")
            become(session, lot, "DONE")
        job = session.get_one(JobRow, job_id)
        set_facts(session, job, estimate={"meta": meta.model_dump()})
        become(session, job, "FINISHING")
        become(session, job, "COMPLETE")
    return place.state(job_id)


def started(
    place: Workshop, workspace_id: str, spec: JobSpec | None = None, *, pooled: bool = False,
    estimate: dict[str, Any] = ESTIMATE,
) -> tuple[JobSpec, str]:  # fmt: skip
    with place.context.reading() as session:
        found, sentence = warm_started(
            session, workspace_id, spec or make_spec(budget=TWELVE), estimate, pooled=pooled
        )  # fmt: skip
    return found, sentence or ""


def test_the_best_recipes_of_a_job_like_it_are_tried_right_after_the_anchors(place: Workshop) -> None:
    past = add_past(place)
    spec, sentence = started(place, past.workspace_id)
    assert [w.values for w in spec.warm_starts] == [BEST, GOOD]
    assert sentence == (
        f"2 recipes from 1 past job are tried first: did well as trial 3 of {past.id}, on 300 items of 2 classes; "
        f"did well as trial 2 of {past.id}, on 300 items of 2 classes"
    )
    job_id = place.job(budget=TWELVE, parallel=12, warm_starts=spec.warm_starts)
    advance(place.context, job_id)
    trials = place.trials(job_id)
    assert [t.anchor for t in trials[:4]] == ["linear_probe", "fine_tuning", "l2_sp", None]
    assert [t.values for t in trials[3:5]] == [BEST, GOOD]
    assert [t.attrs.get("origin") for t in trials] == [None] * 3 + ["warm_start"] * 2 + [None] * 7
    assert trials[3].attrs["why"] == spec.warm_starts[0].why
    advance(place.context, job_id)
    assert len(place.trials(job_id)) == 12


def test_another_workspaces_past_is_not_read_unless_the_installation_pools_it(place: Workshop) -> None:
    past = add_past(place)
    own = place.state(place.job()).workspace_id
    assert own != past.workspace_id

    def sees(learn_from: str, *, pooled: bool) -> bool:
        spec = make_spec(budget=TWELVE, learn_from=learn_from)
        found, sentence = started(place, own, spec, pooled=pooled)
        assert past.id not in sentence, "whose job it was is nobody's business"
        return BEST in [w.values for w in found.warm_starts]

    assert [sees("workspace", pooled=True), sees("installation", pooled=False)] == [False, False]
    assert sees("installation", pooled=True)


def test_a_deleted_job_teaches_nobody(place: Workshop) -> None:
    past = add_past(place)
    with place.context.transaction() as session:
        delete_job(session, past.workspace_id, past.id)
    spec, sentence = started(place, past.workspace_id)
    assert BEST not in [w.values for w in spec.warm_starts]
    assert "past job" not in sentence


def test_unlike_jobs_teach_nothing_and_priors_stand_in(place: Workshop) -> None:
    past = add_past(place, META.model_copy(update={"n_train": 10**8, "per_class_min": 10**6}))
    spec, sentence = started(place, past.workspace_id)
    assert BEST not in [w.values for w in spec.warm_starts]
    assert "derived from how well the source knows the classes" in sentence
    assert spec.warm_starts


@pytest.mark.parametrize(
    ("changes", "estimate"),
    [({"learn_from": "nothing"}, ESTIMATE), ({"budget": Budget(trials=4)}, ESTIMATE), ({}, {"s_per_trial": 1.0})],
)  # fmt: skip
def test_nothing_is_tried_first_where_nothing_may_be_or_can_be(
    place: Workshop, changes: dict[str, Any], estimate: dict[str, Any]
) -> None:
    past = add_past(place)
    spec = make_spec(**{"budget": TWELVE} | changes)
    assert started(place, past.workspace_id, spec, estimate=estimate) == (spec, "")


def test_recipes_follow_the_jobs_own_sources_and_what_it_has_fixed(place: Workshop) -> None:
    past = add_past(place)
    spec = make_spec(overrides={"optimizer.momentum": 0.9, "optimizer.lr_head": {"high": 0.01}}, budget=TWELVE)
    other = SOURCE.model_copy(update={"ref": "src_of_its_own"})
    spec = spec.model_copy(update={
        "sources": (other,), "space": spec.space.model_copy(update={"fixed": {**spec.space.fixed, "source": other.ref}})
    })  # fmt: skip
    found, _ = started(place, past.workspace_id, spec)
    first = found.warm_starts[0].values
    wanted = ("src_of_its_own", 0.9, 0.01)
    assert (first["source"], first["optimizer.momentum"], first["optimizer.lr_head"]) == wanted
    assert first["data.mixup_alpha"] == 0.2


def test_a_warm_start_that_failed_is_not_tried_again(place: Workshop) -> None:
    past = add_past(place)
    spec, _ = started(place, past.workspace_id)
    job_id = place.job(budget=TWELVE, parallel=1, anchors=False, warm_starts=spec.warm_starts)
    place.write(JobRow, job_id, estimate={"s_per_trial": 600.0})
    for _ in range(3):
        advance(place.context, job_id)
        trial = place.trials(job_id)[-1]
        place.end(trial, "FAILED", error={"code": f"broken {trial.number}", "detail": "so it was"})
    origins = [t.attrs.get("origin") for t in place.trials(job_id)]
    assert origins == ["warm_start", "warm_start", None]
