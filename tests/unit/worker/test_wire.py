"""Every message arrives as it was sent, numbers that are none included."""

import math
from multiprocessing import Pipe
from pathlib import Path

import pytest

from domain.lot import FinishOrder
from domain.trial import Report, TrialOutcome
from tests.toys import make_order, make_recipe
from worker import wire
from worker.wire import (
    Alive,
    Done,
    Ended,
    FirstStep,
    Hello,
    Message,
    ProbeLot,
    Refused,
    Reported,
    Resumable,
    RunLot,
    Wishes,
    receive_news,
    receive_order,
    send,
)

ORDER = make_order(
    make_recipe(regularizer=("l2_sp", {"alpha": 0.1, "beta": 0.01})), Path("pack"), None, Path("scratch")
)
REPORT = Report(trial_id="tr_1", fold=0, phase=1, step=5, share=0.25, value=0.5, terms={"task": 1.5}, cost_s=0.125)
NEWS: list[Message] = [
    Hello(facts={"device": "cpu", "n_threads": 1, "memory_bytes": 1 << 40}), Alive(),
    FirstStep(trial_id="tr_1", at=1.5),
    Reported(report=REPORT), Resumable(trial_id="tr_1", folder="/a/b"),
    Ended(outcome=TrialOutcome(trial_id="tr_1", state="COMPLETE", value=0.5, facts={"a": [1]})),
    Done(body={"trials": [{"s_per_step": 0.5}]}), Refused(code="crashed", detail="Müll „und“ mehr"),
]  # fmt: skip
ORDERS: list[Message] = [
    RunLot(order=ORDER, resume_every_s=60.0), ProbeLot(order=ORDER), Wishes(trial_id="tr_1", wish="pause"),
]  # fmt: skip


@pytest.mark.parametrize("message", NEWS, ids=lambda m: m.kind)
def test_news_arrive_as_sent(message: Message) -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        send(theirs, message)
        assert receive_news(ours) == message


@pytest.mark.parametrize("message", ORDERS, ids=lambda m: m.kind)
def test_orders_arrive_as_sent(message: Message) -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        send(ours, message)
        assert receive_order(theirs) == message


def test_there_is_an_example_of_every_kind() -> None:
    kinds = {m.model_dump()["kind"] for m in (*NEWS, *ORDERS)}
    every = {c.model_fields["kind"].default for c in Message.__subclasses__() if c.__module__ == wire.__name__}
    assert every - kinds == {wire.Finish.model_fields["kind"].default}
    assert FinishOrder.model_fields  # its order is composed and carried out in tests/unit/transfer/test_finish.py


def test_a_number_that_is_none_does_not_stop_the_line() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        send(theirs, Reported(report=REPORT.model_copy(update={"terms": {"a": math.nan, "b": math.inf}})))
        send(theirs, Done(body={"ece": -math.inf}))
        first, second = receive_news(ours), receive_news(ours)
    assert isinstance(first, Reported)
    assert math.isnan(first.report.terms["a"])
    assert first.report.terms["b"] == math.inf
    assert isinstance(second, Done)
    assert second.body == {"ece": -math.inf}


def test_the_end_of_the_other_side_is_told() -> None:
    ours, theirs = Pipe()
    theirs.close()
    with ours, pytest.raises(EOFError):
        receive_news(ours)
