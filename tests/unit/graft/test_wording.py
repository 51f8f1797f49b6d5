import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from graft.answers import Event, Interval, Job, Progress, Trial, read
from graft.cli.account import account
from graft.cli.following import Picture
from graft.cli.telling import event_line
from graft.cli.views import RANKING, Lines, last_trials, picture_of
from graft.cli.wording import (
    best_so_far,
    duration,
    interval,
    number,
    objective,
    ranking_lines,
    recipe_line,
    size,
    sparkline,
    too_long,
    trial_count,
)

RESULT = {
    "best_trial_id": "tr_5", "best_number": 5, "val": 0.95, "metrics": {"accuracy": 0.931},
    "test_accuracy": {"value": 0.931, "low": 0.905, "high": 0.953}, "n_test": 846, "n_test_looks": 2,
    "verdict": "The search beat plain fine-tuning by 4.1 points.", "selection_bias": 0.019,
    "anchors": [
        {"name": "fine_tuning", "trial_id": "tr_1", "number": 1, "val": 0.9,
         "test_accuracy": {"value": 0.89, "low": 0.87, "high": 0.91},
         "lift": {"value": 0.041, "low": 0.02, "high": 0.06}},
    ],
}  # fmt: skip
FACTS = {
    "id": "job_1", "name": "n", "dataset_id": "ds_1", "state": "COMPLETE", "spec": {"objective": {"name": "accuracy"}},
    "progress": {"trials_done": 12}, "elapsed_s": 130.0, "cost_s": 118.0, "result": RESULT, "stopped_by": "user",
}  # fmt: skip


def test_numbers_worked_out_by_hand() -> None:
    assert [duration(s) for s in (None, 0.4, 59.6, 185, 8040)] == ["-", "0 s", "1 min 00 s", "3 min 05 s", "2 h 14 min"]
    assert [size(n) for n in (812, 3_140_000, 2e9)] == ["812 bytes", "3.1 MB", "2.0 GB"]
    assert [number(v) for v in (None, math.nan, 0.12345)] == ["-", "-", "0.1235"]
    assert interval(Interval(0.931, 0.905, 0.953)) == "0.931 [0.905, 0.953]"
    assert interval(Interval(0.01, -0.02, 0.04), signed=True) == "+0.010 [-0.020, +0.040]"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([]) == ""
    assert sparkline([2, 2]) == "▅▅"


@given(st.lists(st.floats(-10, 10), max_size=60), st.booleans())
def test_the_best_so_far_never_gets_worse(values: list[float], more: bool) -> None:
    best = best_so_far(values, more_is_better=more)
    assert len(best) == len(values)
    assert best == sorted(best, reverse=not more)
    assert not values or best[-1] == (max(values) if more else min(values))
    assert len(sparkline(best)) == min(30, len(values))


def test_the_account_holds_every_honest_number() -> None:
    job = read(Job, FACTS)
    text = "\n".join(account(job))
    for needed in (
        "0.931 [0.905, 0.953] (95 % interval) on 846 images", "fine tuning", "+0.041 [+0.020, +0.060]",
        "The search beat plain fine-tuning by 4.1 points.", "This is trial 5, of 12 trials; accuracy on val: 0.9500",
        "2 min 10 s", "+0.0190", "looked at 2 times", "The search ended because it was told to.",
    ):  # fmt: skip
        assert needed in text
    assert objective(job) == ("accuracy", True)
    assert "no result" in account(read(Job, {**FACTS, "result": None, "state": "FAILED"}))[0]


def test_the_account_of_a_combination_says_what_it_is_made_of_and_why() -> None:
    combined = {"kind": "ensemble", "numbers": [5, 2], "val": 0.97, "best_single": 0.95, "taken": True, "why": "better"}
    told = {"summary": ["Trial 5 was best.", "The ensemble was handed back."], "combined": [combined]}
    text = "\n".join(account(read(Job, {**FACTS, "result": {**RESULT, **told}})))
    assert "This is an ensemble of trials 5, 2, of 12 trials" in text
    assert "- Trial 5 was best.\n- The ensemble was handed back." in text


def test_the_account_shows_the_front_and_marks_the_one_that_was_taken() -> None:
    front = [
        {"trial_id": "tr_7", "number": 7, "values": {"accuracy": 0.96, "latency_ms": 31.416, "size_bytes": 44.7e6}},
        {"trial_id": "tr_5", "number": 5, "values": {"accuracy": 0.95, "latency_ms": 7.5, "size_bytes": 5e6},
         "chosen": True},
    ]  # fmt: skip
    lines = account(read(Job, {**FACTS, "result": {**RESULT, "front": front}}))
    at = next(place for place, line in enumerate(lines) if line.startswith("The front"))
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["trial", "accuracy", "latency_ms", "size_bytes"],
        ["7", "0.9600", "31.4", "ms", "44.7", "MB"],
        ["*", "5", "0.9500", "7.5", "ms", "5.0", "MB"],
    ]


def test_a_probe_has_no_learning_rate() -> None:
    recipe = {"backbone": "resnet18", "optimizer": {"lr_head": 0.01}, "steps": 500}
    assert recipe_line(recipe) == "resnet18 lr 0.01 500 steps"
    assert recipe_line({**recipe, "schedule": {"name": "linear_probe"}}) == "resnet18 linear_probe"


def test_a_trial_longer_than_the_budget_is_told() -> None:
    facts = {**FACTS, "spec": {"budget": {"trials": None, "wall_s": 120.0}}, "estimate": {"s_per_trial": 700.0}}
    warning = too_long(read(Job, facts))
    assert warning is not None
    assert "budget of 2 min 00 s" in warning
    for fits in ({"estimate": {"s_per_trial": 100.0}}, {"estimate": None}, {"spec": {"budget": {"trials": 3}}}):
        assert too_long(read(Job, {**facts, **fits})) is None
    assert [trial_count(p) for p in (Progress(3, 20), Progress(3, None))] == ["3/20", "3"]


def test_sources_are_ranked_one_a_line() -> None:
    ranking = [
        {"rank": 1, "source": "torchvision:resnet50", "scores": {"knn": 0.8125, "leep": None, "logme": 0.41234},
         "seconds": 12.4},
        {"rank": 2, "source": "src_1", "scores": {"knn": None, "logme": None}, "seconds": 3.0},
    ]  # fmt: skip
    estimate = {"ranking": ranking, "ranked_by": ["knn", "logme"], "ranks_first": "torchvision:resnet50"}
    assert ranking_lines(estimate) == [
        "1. torchvision:resnet50  knn 0.8125, logme 0.4123  (12 s)",
        "2. src_1  no score  (3 s)",
    ]
    assert ranking_lines({"s_per_trial": 1.0}) == []


def test_lines_print_the_ranking_with_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"rank": 1, "source": "src_1", "scores": {"logme": 0.5}, "seconds": 1.0}
    estimate = {"s_per_trial": 3.0, "device": "cpu", "ranking": [entry], "ranked_by": ["logme"]}
    Lines().event(Event(6, "job.estimate", estimate), Picture(read(Job, FACTS)))
    assert capsys.readouterr().out.splitlines()[1:] == [RANKING, "1. src_1  logme 0.5000  (1 s)"]


def test_the_account_says_when_only_anchors_were_compared() -> None:
    told = "only the fixed recipes above were compared"
    alone = {"trials_done": 1, "by_state": {"COMPLETE": 1, "CANCELLED": 1}}
    assert told in "\n".join(account(read(Job, {**FACTS, "progress": alone})))
    searched = {"trials_done": 2, "by_state": {"COMPLETE": 1, "PRUNED": 1}}
    assert told not in "\n".join(account(read(Job, {**FACTS, "progress": searched})))


def trial(number: int, state: str, value: float | None = None) -> Trial:
    return Trial(f"tr_{number}", "job_1", number, state, value=value, share=0.5, cost_s=1.0)


def test_running_trials_are_always_shown() -> None:
    trials = [trial(0, "RUNNING"), *(trial(k, "COMPLETE", 0.5) for k in range(1, 30)), trial(30, "WAITING")]
    shown = last_trials(trials, rows=4)
    assert [t.number for t in shown] == [0, 27, 28, 29]
    assert last_trials([], rows=4) == []
    assert [t.number for t in last_trials([trial(k, "RUNNING") for k in range(9)], rows=4)] == [5, 6, 7, 8]


def test_the_picture_shows_state_best_and_time() -> None:
    job = Job(
        "job_1", "photos", "ds_1", "RUNNING", progress=Progress(2, 9, share=0.2), left_s=90.0, elapsed_s=10.0,
        spec={"objective": "accuracy"},
    )  # fmt: skip
    picture = Picture(job, {t.id: t for t in (trial(0, "COMPLETE", 0.25), trial(1, "RUNNING", 0.75))})
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(picture_of(picture, "a note"))
    console.file.close()
    text = console.export_text()
    for needed in (
        "photos",
        "RUNNING",
        "2/9 trials",
        "about 1 min 30 s left",
        "none yet",
        "0.2500",
        "0.7500",
        "a note",
    ):
        assert needed in text
    assert picture.best_curve() == [0.25]


def test_every_kind_of_event_has_words() -> None:
    assert (
        event_line(Event(1, "job.state", {"state": "FAILED", "error": {"code": "x", "detail": "why"}}))
        == "job is FAILED: why (x)"
    )
    assert event_line(Event(2, "trial.created", {"number": 3, "anchor": "l2_sp"})) == "trial 3 (l2_sp) planned"
    assert (
        event_line(Event(3, "trial.state", {"number": 3, "state": "COMPLETE", "value": 0.5}))
        == "trial 3 is COMPLETE, val 0.5000"
    )
    assert event_line(Event(4, "trial.report", {"number": 3, "share": 0.25, "value": None})) == "trial 3 25 %"
    assert event_line(Event(5, "job.best", {"number": 3, "value": 0.5})) == "best so far: trial 3, val 0.5000"
    estimate = {"s_per_trial": 15.67, "memory_bytes": 839794688, "device": "cpu", "sources": []}
    assert event_line(Event(6, "job.estimate", estimate)) == "a trial takes about 16 s on cpu; 839.8 MB of memory"
    result = {"best_number": 3, "test_accuracy": {"value": 0.97}}
    assert event_line(Event(6, "job.result", result)) == "result: trial 3, test accuracy 0.9700"
    assert event_line(Event(6, "of.the.future", {"a": 1})) == "of.the.future a 1"
