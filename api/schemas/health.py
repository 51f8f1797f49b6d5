"""Health over the wire."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Live(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok", "version": "0.1.0"}]})

    status: Literal["ok"] = "ok"
    version: str


class Ready(BaseModel):
    """Whether the servers behind this one answer. `workers` is told, not judged: an API without workers takes jobs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"ready": True, "database": True, "migrated": True, "blobs": True, "queue": True, "workers": 1}
            ]
        }
    )

    ready: bool
    database: bool
    migrated: bool = Field(description="The database has every table of this version.")
    blobs: bool = Field(description="The blob store can be written.")
    queue: bool = Field(description="The broker answers; always true where there is none.")
    workers: int = Field(description="Workers that told of themselves within the last lease.")
