"""Errors a user can act on. Each carries a stable `code`; the API renders them as problem+json in one place.

GraftError
├── Invalid            422  the request cannot be carried out as written
├── NotFound           404  no such thing in this workspace
├── Conflict           409  not in this state
├── Unauthorized       401  no key, or an unknown one
├── TooLarge           413  over a limit of this installation
├── Unsupported        415  a body or a tus version this server does not speak
├── Unavailable        503  a server behind this one does not answer; try again
└── LeaseLost           -   another worker owns this now: stop, and write nothing
"""

from typing import Any


class GraftError(Exception):
    """An expected failure: `code` is stable for programs, `detail` says what to change, `facts` are JSON values."""

    def __init__(self, code: str, detail: str, **facts: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.facts = facts

    def __reduce__(self) -> tuple[Any, ...]:  # survives the pipe of a child process, keyword facts included
        return _rebuild, (type(self), self.code, self.detail, self.facts)


def _rebuild(kind: type[GraftError], code: str, detail: str, facts: dict[str, Any]) -> GraftError:
    return kind(code, detail, **facts)


class Invalid(GraftError):
    """The request is understood and refused; `detail` names what is legal."""


class NotFound(GraftError):
    """There is no such thing, or it belongs to another workspace: the two are told apart by nobody."""


class Conflict(GraftError):
    """The thing exists but its state does not allow this."""


class Unauthorized(GraftError):
    """No API key was given, or it is not a key of this installation."""


class TooLarge(GraftError):
    """A body, an archive or an image passes a limit."""


class Unsupported(GraftError):
    """The media type, encoding or protocol version is not one this server reads."""


class Unavailable(GraftError):
    """A database, queue or blob store does not answer."""


class LeaseLost(GraftError):
    """The lease on a row has passed to another owner; every write of the old owner is void."""
