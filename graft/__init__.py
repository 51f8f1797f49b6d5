"""The Python SDK of Graft: `from graft import Client`.

Light on purpose: standard library, httpx, typer and rich; nothing is imported before it is used, so that
`graft --help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graft.answers import (
        AnchorResult,
        ApiKey,
        Best,
        Dataset,
        Event,
        Finding,
        Interval,
        Job,
        JobResult,
        Page,
        Progress,
        Report,
        Source,
        Trial,
    )
    from graft.client import Client
    from graft.errors import GraftApiError, GraftError, NoService, Unreachable

_HOME_OF = {
    "Client": "graft.client",
    **dict.fromkeys(("GraftApiError", "GraftError", "NoService", "Unreachable"), "graft.errors"),
    **dict.fromkeys(
        (
            "AnchorResult", "ApiKey", "Best", "Dataset", "Event", "Finding", "Interval", "Job", "JobResult", "Page",
            "Progress", "Report", "Source", "Trial",
        ),
        "graft.answers",
    ),
}  # fmt: skip

__all__ = [
    "AnchorResult",
    "ApiKey",
    "Best",
    "Client",
    "Dataset",
    "Event",
    "Finding",
    "GraftApiError",
    "GraftError",
    "Interval",
    "Job",
    "JobResult",
    "NoService",
    "Page",
    "Progress",
    "Report",
    "Source",
    "Trial",
    "Unreachable",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'graft' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
