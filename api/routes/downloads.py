"""Downloads: the checkpoint of a trial, the bundle of a job. Ranges, ETag, checksum, HEAD."""

from typing import Any

from fastapi import APIRouter, Request, Response

from api.auth import Caller, CallerDep
from api.ids import JobId, TrialId
from api.ranges import serve
from api.schemas.problem import problems
from api.site import Site, SiteDep
from domain.errors import Conflict, NotFound
from domain.ports import BlobInfo
from domain.states import JobState, TrialState
from store.blob_rows import blob_info
from store.jobs import get_job
from store.session import reading
from store.trials import get_trial

router = APIRouter(prefix="/v1", tags=["downloads"])

_HEADERS = {
    name: {"schema": {"type": "string"}}
    for name in ("ETag", "X-Checksum-Sha256", "Repr-Digest", "Accept-Ranges", "Content-Length")
}


def _file(kind: str) -> dict[int | str, dict[str, Any]]:
    content = {kind: {"schema": {"type": "string", "format": "binary"}}}
    ranged = _HEADERS | {"Content-Range": {"schema": {"type": "string"}}}
    return {
        200: {"description": "The whole file", "content": content, "headers": _HEADERS},
        206: {"description": "The range asked for", "content": content, "headers": ranged},
        304: {"description": "The file has the ETag given in If-None-Match"},
        **problems(401, 404, 409, 416, 503),
    }


_PARAMETERS: dict[str, Any] = {
    "parameters": [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "example": example}
        for name, example in (("Range", "bytes=1048576-"), ("If-Range", '"<etag>"'), ("If-None-Match", '"<etag>"'))
    ]
}
_TENSORS = "application/vnd.safetensors"
_ZIP = "application/zip"


@router.get(
    "/trials/{trial}/checkpoint", summary="Download a checkpoint", response_class=Response,
    responses=_file(_TENSORS), openapi_extra=_PARAMETERS,
)  # fmt: skip
def get_checkpoint(request: Request, site: SiteDep, caller: CallerDep, trial: TrialId) -> Response:
    """The network's weights as safetensors. Anchors, the best and the top few are kept; else 409 `not_complete`."""
    key, info = _checkpoint(site, caller, trial)
    return serve(request, site.blobs, key, info, media_type=_TENSORS, filename=f"{trial}.safetensors")


@router.head(
    "/trials/{trial}/checkpoint", summary="Size and checksum of a checkpoint", response_class=Response,
    responses=_file(_TENSORS), openapi_extra=_PARAMETERS,
)  # fmt: skip
def head_checkpoint(request: Request, site: SiteDep, caller: CallerDep, trial: TrialId) -> Response:
    """As GET without the bytes."""
    return get_checkpoint(request, site, caller, trial)


@router.get(
    "/jobs/{job}/bundle", summary="Download the bundle", response_class=Response, responses=_file(_ZIP),
    openapi_extra=_PARAMETERS,
)  # fmt: skip
def get_bundle(request: Request, site: SiteDep, caller: CallerDep, job: JobId) -> Response:
    """The best network with all that is needed to use it. 409 `not_complete` before the job is COMPLETE."""
    key, info = _bundle(site, caller, job)
    return serve(request, site.blobs, key, info, media_type=_ZIP, filename=f"{job}.zip")


@router.head(
    "/jobs/{job}/bundle", summary="Size and checksum of the bundle", response_class=Response, responses=_file(_ZIP),
    openapi_extra=_PARAMETERS,
)  # fmt: skip
def head_bundle(request: Request, site: SiteDep, caller: CallerDep, job: JobId) -> Response:
    """As GET without the bytes."""
    return get_bundle(request, site, caller, job)


def _checkpoint(site: Site, caller: Caller, trial_id: str) -> tuple[str, BlobInfo]:
    with reading(site.engine) as session:
        row = get_trial(session, caller.workspace_id, trial_id)
        if row.checkpoint_blob is None:
            kept = TrialState(row.state).finished
            why = "its checkpoint was not kept" if kept else "its checkpoint is there when it is COMPLETE"
            raise Conflict("not_complete", f"the trial is {row.state}; {why}", state=row.state)
        info = blob_info(session, row.checkpoint_blob)
        if info is None:
            raise NotFound("checkpoint_not_found", "the checkpoint of this trial is gone")
        return row.checkpoint_blob, info


def _bundle(site: Site, caller: Caller, job_id: str) -> tuple[str, BlobInfo]:
    with reading(site.engine) as session:
        row = get_job(session, caller.workspace_id, job_id)
        if row.state != JobState.COMPLETE or row.bundle_blob is None:
            ended = JobState(row.state).finished
            why = "it left no bundle" if ended else "its bundle is there when it is COMPLETE"
            detail = f"the job is {row.state}; {why}"
            raise Conflict("not_complete", detail, state=row.state)
        info = blob_info(session, row.bundle_blob)
        if info is None:
            raise NotFound("bundle_not_found", "the bundle of this job is gone")
        return row.bundle_blob, info
