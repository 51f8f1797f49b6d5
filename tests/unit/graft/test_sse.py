from hypothesis import given
from hypothesis import strategies as st

from graft.sse import Message, parse

ONE_LINE = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n\0"), max_size=20)


def test_the_examples_of_the_standard() -> None:
    stock = ["data: YHOO", "data: +2", "data: 10", ""]
    assert list(parse(stock)) == [Message("YHOO\n+2\n10")]
    stream = [
        ": test stream",
        "",
        "data: first event",
        "id: 1",
        "",
        "data:second event",
        "id",
        "",
        "data:  third event",
        "",
    ]
    assert [(m.data, m.id) for m in parse(stream)] == [("first event", "1"), ("second event", ""), (" third event", "")]
    assert [m.data for m in parse(["data", "", "data", "data", "", "data:"])] == ["", "\n"]


def test_an_id_holds_until_another_comes_and_a_retry_is_a_number() -> None:
    lines = ["id: 7", "data: a", "retry: 2500", "", "data: b", "retry: soon", "event: x", "", "event: lost", ""]
    assert list(parse(lines)) == [Message("a", "message", "7", 2500), Message("b", "x", "7", None)]


def test_an_unfinished_message_is_none() -> None:
    assert list(parse(["data: cut off"])) == []


@given(st.lists(st.tuples(st.lists(ONE_LINE, min_size=1, max_size=3), ONE_LINE), max_size=5))
def test_what_is_written_is_read(messages: list[tuple[list[str], str]]) -> None:
    lines: list[str] = []
    for data, event in messages:
        lines += [f"event: {event}", *(f"data: {line}" for line in data), ": heartbeat", ""]
    assert [(m.data, m.event) for m in parse(lines)] == [
        ("\n".join(data), event or "message") for data, event in messages
    ]
