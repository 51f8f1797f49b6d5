"""A trial rests at a rung of a real search, and goes on from there once it belongs to the best."""

from pathlib import Path

from tests.system.digits import write_digits
from tests.system.installation import installed

# Long enough that the worker, which looks once a second, sees a trial before its end.
SPACE = {"steps": 400, "data.batch_size": 16, "data.flip": False, "data.augmentation": 0.0, "data.mixup_alpha": 0.0}


def test_a_trial_rests_at_a_rung_is_promoted_and_goes_on_without_starting_over(tmp_path: Path) -> None:
    archive = write_digits(tmp_path / "digits.zip", list(range(10)), per_class=30)
    with installed(tmp_path / "home") as service:
        service.start_api()
        service.start_worker()
        with service.client() as client:
            dataset = client.datasets.wait(client.datasets.upload(archive).id, timeout_s=900)
            job = client.jobs.submit(
                dataset.id, sources=["scratch:smallnet"], trials=22, anchors=False, n_folds=1, objective="log_loss",
                sampler="random", pruner="halving", space=SPACE, seed=1,
            )  # fmt: skip
            done = client.jobs.wait(job.id, timeout_s=1500)
            assert done.state == "COMPLETE", done.error
            events = list(client.jobs.past_events(job.id))
            trials = {t.number: t for t in client.jobs.trials(job.id)}
    moves: dict[int, list[str]] = {number: [] for number in trials}
    for event in events:
        if event.kind == "trial.state":
            moves[event.body["number"]].append(event.body["state"])
    assert {t.state for t in trials.values()} <= {"COMPLETE", "PRUNED"}
    rested = [n for n, states in moves.items() if "PAUSED" in states]
    promoted = [n for n in rested if moves[n][:4] == ["RUNNING", "PAUSED", "WAITING", "RUNNING"]]
    assert promoted, moves
    assert any(moves[n] == ["RUNNING", "PAUSED", "PRUNED"] for n in rested), moves
    first = promoted[0]
    assert moves[first][4:] in (["COMPLETE"], ["PAUSED", "PRUNED"], ["PAUSED", "WAITING", "RUNNING", "COMPLETE"])
    told = [e.body for e in events if e.kind in ("trial.report", "trial.state") and e.body["number"] == first]
    at_rest = next(place for place, body in enumerate(told) if body.get("state") == "PAUSED")
    before = [body["step"] for body in told[:at_rest] if "step" in body]
    after = [body["step"] for body in told[at_rest:] if "step" in body]
    assert before
    assert after
    assert max(before) < min(after), "what it has trained is not trained again"
    assert all(trials[number].value is not None for number in rested), "what it showed at its rung is kept"
