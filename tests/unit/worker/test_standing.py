"""How trials stand to each other in a job of several objectives, over real rows of both databases."""

from domain.job import Budget, JobSpec, Limit, Objective
from tests.unit.worker.conftest import Workshop
from worker.advance import advance
from worker.standing import front_points, leader, standing

QUICK = Limit(objective="latency_ms", at_most=10)
# accuracy, latency: trials 2 and 3 are on the front with trial 0, trial 1 is behind trial 2 in both
FACTS = [(0.5, 2.0), (0.6, 9.0), (0.7, 8.0), (0.9, 30.0)]


def run(place: Workshop, **changes: object) -> tuple[str, list[str]]:
    """A job whose trials have ended with FACTS, and their ids."""
    budget = Budget(trials=len(FACTS))
    job_id = place.job(objectives=(Objective(name="accuracy"), Objective(name="latency_ms")), anchors=False,
                       budget=budget, **changes)  # fmt: skip
    for value, latency in FACTS:
        advance(place.context, job_id)
        (trial,) = [t for t in place.trials(job_id) if t.state == "WAITING"][:1]
        place.end(trial, value=value, metrics={"accuracy": value, "latency_ms": latency})
    advance(place.context, job_id)
    return job_id, [t.id for t in place.trials(job_id)]


def spec_of(place: Workshop, job_id: str) -> JobSpec:
    return JobSpec.model_validate(place.state(job_id).spec)


def test_the_front_keeps_its_weights_and_the_rest_loses_them(place: Workshop) -> None:
    job_id, ids = run(place)
    assert place.kept() == {f"{ids[n]}/weights.safetensors" for n in (0, 2, 3)}
    with place.context.reading() as session:
        spec = spec_of(place, job_id)
        points = front_points(standing(session, job_id, spec), spec)
        assert leader(session, job_id, spec) == ids[3]
    assert [(p.number, p.values["accuracy"], p.values["latency_ms"]) for p in points] == [
        (3, 0.9, 30.0), (2, 0.7, 8.0), (0, 0.5, 2.0),
    ]  # fmt: skip


def test_under_a_limit_another_trial_leads(place: Workshop) -> None:
    job_id, ids = run(place, limits=(QUICK,))
    with place.context.reading() as session:
        assert leader(session, job_id, spec_of(place, job_id)) == ids[2]
        assert [t.number for t in standing(session, job_id, spec_of(place, job_id)).ranked] == [2, 1, 0, 3]


def test_one_objective_without_limits_shows_no_front(place: Workshop) -> None:
    job_id, ids = run(place)
    alone = spec_of(place, job_id).model_copy(update={"objectives": (Objective(name="accuracy"),)})
    with place.context.reading() as session:
        assert standing(session, job_id, alone).front == ()
        assert leader(session, job_id, alone) == ids[3]
