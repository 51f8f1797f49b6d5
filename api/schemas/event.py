"""What happened to a job, as it goes over the wire."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.page import moment
from store.tables import EventRow


class Event(BaseModel):
    """One event; server-sent events carry the same facts: `id: seq`, `event: kind`, `data: body`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"seq": 3, "kind": "job.state", "body": {"state": "RUNNING"}, "at": "2026-11-21T08:00:00Z"}]
        }
    )

    seq: int
    kind: str
    body: dict[str, Any]
    at: datetime


class Events(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"items": [{"seq": 3, "kind": "job.state", "body": {"state": "RUNNING"}, "at": "2026-11-21T08:00:00Z"}],
                 "next_after": 3}
            ]
        }
    )  # fmt: skip

    items: list[Event]
    next_after: int = Field(description="Give it as `after` to go on.")


def show_event(row: EventRow) -> Event:
    return Event(seq=row.seq, kind=row.kind, body=row.body, at=moment(row.at))
