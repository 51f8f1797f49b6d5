"""What can go wrong for a user of the SDK.

GraftError          base: one sentence that says what to change
├── GraftApiError   the service answered with a problem: `code`, `detail`, `status`, `facts`
├── Unreachable     the service did not answer
├── NoService       no service is configured and none runs here
└── Damaged         bytes arrived that are not the bytes that were promised
"""

from collections.abc import Mapping
from typing import Any


class GraftError(Exception):
    """An expected failure; its text is for people."""


class GraftApiError(GraftError):
    """A problem+json answer. `code` is stable for programs, `detail` says what to change, `facts` is the rest."""

    def __init__(self, code: str, detail: str, status: int, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{detail} ({code})")
        self.code = code
        self.detail = detail
        self.status = status
        self.facts: dict[str, Any] = dict(facts or {})


class Unreachable(GraftError):
    """No answer from the service after every retry."""


class NoService(GraftError):
    """Neither an argument, nor the environment, nor the home folder names a service."""


class Damaged(GraftError):
    """A checksum does not match what the service announced."""
