"""Keys and the workspace over the wire."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.text import Name


class KeyCreate(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "laptop"}]})

    name: Name


class Key(BaseModel):
    """A key as it can be shown: its secret is known to nobody but the one who made it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "key_0193c1f2a4d10f2b3c4d5e6f7081", "name": "laptop", "prefix": "k3v9x2",
                 "created_at": "2026-11-21T08:00:00Z"}
            ]
        }
    )  # fmt: skip

    id: str
    name: str
    prefix: str
    created_at: datetime


class NewKey(Key):
    """A key just made, with its plaintext, this one time."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "key_0193c1f2a4d10f2b3c4d5e6f7081", "name": "laptop", "prefix": "k3v9x2",
                 "created_at": "2026-11-21T08:00:00Z", "key": "graft_k3v9x2.…"}
            ]
        }
    )  # fmt: skip

    key: Annotated[str, Field(description="Shown once; only its hash is kept.")]


class Workspace(BaseModel):
    """The workspace of the key, and what it holds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"id": "ws_0193c1f2a4d10f2b3c4d5e6f7081", "name": "default", "created_at": "2026-11-21T08:00:00Z",
                 "n_datasets": 2, "n_jobs": 5, "n_sources": 1, "stored_bytes": 73400320}
            ]
        }
    )  # fmt: skip

    id: str
    name: str
    created_at: datetime
    n_datasets: int
    n_jobs: int
    n_sources: int
    stored_bytes: int = Field(description="Of all blobs the workspace refers to.")
