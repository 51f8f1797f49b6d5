"""The form of every error."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class FieldError(BaseModel):
    """One thing wrong with one field."""

    where: str
    message: str
    type: str


class Problem(BaseModel):
    """RFC 9457. `code` is stable for programs; further members are facts of that code."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] | None = Field(
        default=None, description="with `validation_error`: every field that is wrong"
    )


_WHAT = {
    400: ("The request cannot be read", "malformed_json", "the body is no JSON: Expecting value at position 0"),
    401: ("No key, or an unknown one", "unauthorized", "give a key of this installation: Authorization: Bearer <key>"),
    404: ("No such thing in this workspace", "not_found", "there is no job job_0193c1f2a4d10f2b3c4d5e6f708192a3"),
    408: ("The client sent nothing for too long", "request_timeout", "no bytes for 60 s; what came is not kept"),
    409: (
        "Its state does not allow this",
        "not_complete",
        "the job is RUNNING; its bundle is there when it is COMPLETE",
    ),
    410: ("The upload has expired", "upload_expired", "this upload was idle for too long; begin a new one"),
    412: ("Another version of tus", "tus_version", "this server speaks tus 1.0.0"),
    413: ("Over a limit of this installation", "upload_too_large", "the upload is larger than 21474836480 bytes"),
    415: ("A body this server does not read", "unsupported_media_type", "send the archive itself as the body"),
    416: ("A range outside the file", "range_not_satisfiable", "the file has 1048576 bytes"),
    422: (
        "Understood and refused",
        "validation_error",
        "body.budget: a budget of nothing: give trials, wall_s or both",
    ),
    423: ("Another request writes to this upload", "upload_locked", "another request is writing to this upload"),
    460: ("The checksum of this part differs", "chunk_checksum_mismatch", "the bytes do not have the checksum given"),
    503: ("A server behind this one does not answer", "unavailable", "the database does not answer; try again"),
    507: ("No room left", "insufficient_storage", "the server has no room left to store this"),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: each status typed, with an example."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        what, code, detail = _WHAT[status]
        example = {"type": f"urn:graft:problem:{code}", "title": what, "status": status, "detail": detail, "code": code}
        found[status] = {
            "description": what,
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}
            },
        }
    return found
