"""Server-sent events, as the WHATWG standard parses them: the parts that a client of one stream needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    data: str
    event: str = "message"
    id: str = ""
    retry_ms: int | None = None


def parse(lines: Iterable[str]) -> Iterator[Message]:
    """Messages from the lines of a stream (without their ends). An unfinished message at the end is dropped.

    The last `id` holds for later messages that bring none; a message without data is none.
    """
    data: list[str] = []
    event, last_id = "", ""
    retry_ms: int | None = None
    for line in lines:
        if not line:
            if data:
                yield Message("\n".join(data), event or "message", last_id, retry_ms)
            data, event, retry_ms = [], "", None
            continue
        name, _, value = line.partition(":")  # a comment has an empty name
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id" and "\0" not in value:
            last_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            retry_ms = int(value)
