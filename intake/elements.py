"""JSON that is too long to hold, value by value."""

import json
from collections.abc import Iterator
from typing import Any

_DECODER = json.JSONDecoder()
_SPACE = (" ", "\t", "\r", "\n")
_AFTER = (*_SPACE, ",", ":", "]", "}")


def stream(chunks: Iterator[str], within: str) -> Iterator[tuple[str, Any]]:
    """The members of one JSON object, in their order; the list under `within` element by element, each with that name.

    ValueError where the text is no such object, or breaks off.
    """
    text = _Text(chunks)
    text.expect("{")
    while not text.ends("}"):
        key = text.value()
        text.expect(":")
        if key == within:
            text.expect("[")
            while not text.ends("]"):
                yield key, text.value()
        else:
            yield key, text.value()


class _Text:
    """What has been read of the text and not yet been understood."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks, self._text, self._at = chunks, "", 0

    def value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                if not self._read_on():
                    raise
                continue
            # A number may go on in the next chunk: 4 as 4.5, or as 41.
            if self._text[end : end + 1] in _AFTER or not self._read_on():
                self._at = end
                return value

    def expect(self, sign: str) -> None:
        if self._next() != sign:
            raise ValueError(f"expected {sign!r} in JSON, found {self._next()!r}")
        self._at += 1

    def ends(self, sign: str) -> bool:
        """Whether a list or object is over; a comma before its next value is skipped."""
        found = self._next()
        if found in (sign, ","):
            self._at += 1
        return found == sign

    def _next(self) -> str:
        """The sign that comes next."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                raise ValueError("JSON breaks off")

    def _read_on(self) -> bool:
        """As much again as is waiting, so that a long value is not tried at every chunk of it."""
        rest = self._text[self._at :]
        found: list[str] = []
        while sum(map(len, found)) < max(1, len(rest)) and (chunk := next(self._chunks, None)) is not None:
            found.append(chunk)
        if not any(found):
            return False
        self._text, self._at = "".join([rest, *found]), 0
        return True
