"""Resumable uploads: tus 1.0.0, core, creation, checksum, expiration, termination."""

from email.utils import formatdate
from typing import Any

from fastapi import APIRouter, Request, Response

from api import tus
from api.auth import Caller, CallerDep
from api.ids import UploadId
from api.routes.datasets import CURL, read_options
from api.schemas.problem import problems
from api.schemas.text import check_printable
from api.site import Site, SiteDep
from api.streams import check_room, in_thread, too_large
from api.transactions import WriteDep
from domain.catalogue import catalogue
from domain.errors import Conflict, Invalid, Unsupported
from store import uploads
from store.datasets import insert_dataset
from store.session import reading
from store.tables import UploadRow

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

PART_KIND = "application/offset+octet-stream"


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"schema": {"type": "string"}} for name in names}


def _given(*names: str) -> dict[str, Any]:
    required = {"Tus-Resumable", "Upload-Length", "Upload-Offset"}
    return {
        "parameters": [
            {"name": name, "in": "header", "required": name in required, "schema": {"type": "string"}} for name in names
        ]
    }


def _done(status: int, what: str, *names: str) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": what, "headers": _headers("Tus-Resumable", *names)}}


@router.options(
    "", status_code=204, summary="What this server speaks", response_class=Response,
    responses=_done(204, "Version, extensions and limits", "Tus-Version", "Tus-Extension", "Tus-Max-Size",
                    "Tus-Checksum-Algorithm"),
)  # fmt: skip
def describe(site: SiteDep) -> Response:
    """No key is needed."""
    headers = {
        "Tus-Version": tus.VERSION, "Tus-Extension": tus.EXTENSIONS,
        "Tus-Max-Size": str(site.settings.max_upload_bytes), "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
    }  # fmt: skip
    return _answer(204, headers)


@router.post(
    "", status_code=201, summary="Begin a resumable upload", response_class=Response,
    responses=_done(201, "Begun", "Location", "Upload-Offset", "Upload-Expires", "Graft-Dataset-Id")
    | problems(400, 401, 412, 413, 415, 422, 503, 507),
    openapi_extra=_given("Tus-Resumable", "Upload-Length", "Upload-Metadata"),
)  # fmt: skip
def create_upload(request: Request, session: WriteDep, site: SiteDep, caller: CallerDep) -> Response:
    """Upload-Metadata may hold `name` or `filename`, `task`, `options` (JSON) and `sha256` of the whole. The dataset
    exists from now on as UPLOADING; its id is in `Graft-Dataset-Id`."""
    tus.check_version(request)
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        detail = f"multipart forms are not read; begin a tus upload, or send the file itself as the body: {CURL}"
        raise Unsupported("unsupported_media_type", detail, curl=CURL)
    length = tus.whole_number(request, "Upload-Length")
    if length > site.settings.max_upload_bytes:
        raise too_large(site.settings.max_upload_bytes)
    if length == 0:
        raise Invalid("upload_empty", "an upload of no bytes is no archive")
    check_room(site, length)
    metadata = tus.read_metadata(request.headers.get("upload-metadata", ""))
    task = metadata.get("task", "classification")
    catalogue().task(task)
    options = read_options(metadata.get("options") or "{}", "Upload-Metadata.options")
    dataset = insert_dataset(session, caller.workspace_id, name=_name(metadata), task=task, options=options)
    row = uploads.insert_upload(
        session, caller.workspace_id, dataset.id, length=length, metadata=metadata, sha256=_sha256(metadata),
        ttl_s=site.settings.upload_ttl_s,
    )  # fmt: skip
    tus.partial_path(site, row.id).touch(mode=0o600)
    headers = {"Location": f"/v1/uploads/{row.id}", "Upload-Offset": "0", "Graft-Dataset-Id": dataset.id}
    return _answer(201, headers | _expires(row))


@router.head(
    "/{upload}", status_code=200, summary="How far an upload is", response_class=Response,
    responses=_done(200, "Where to go on", "Upload-Offset", "Upload-Length", "Upload-Metadata", "Upload-Expires",
                    "Graft-Dataset-Id") | problems(401, 404, 412, 503),
    openapi_extra=_given("Tus-Resumable"),
)  # fmt: skip
def show_upload(request: Request, site: SiteDep, caller: CallerDep, upload: UploadId) -> Response:
    """The offset can be relied on after any crash."""
    tus.check_version(request)
    row = _find(site, caller, upload)
    headers = {
        "Upload-Offset": str(tus.true_offset(site, row)), "Upload-Length": str(row.length),
        "Graft-Dataset-Id": row.dataset_id, "Cache-Control": "no-store",
    }  # fmt: skip
    if row.upload_metadata:
        headers["Upload-Metadata"] = tus.write_metadata(row.upload_metadata)
    return _answer(200, headers | _expires(row))


@router.patch(
    "/{upload}", status_code=204, summary="Send a part", response_class=Response,
    responses=_done(204, "Kept", "Upload-Offset", "Upload-Expires", "Graft-Dataset-Id")
    | problems(400, 401, 404, 408, 409, 412, 415, 422, 423, 460, 503, 507),
    openapi_extra=_given("Tus-Resumable", "Upload-Offset", "Upload-Checksum") | {
        "requestBody": {"required": True, "content": {PART_KIND: {"schema": {"type": "string", "format": "binary"}}}}
    },
)  # fmt: skip
async def append_part(request: Request, site: SiteDep, caller: CallerDep, upload: UploadId) -> Response:
    """The bytes from `Upload-Offset` on. With the last of them the dataset is handed to a worker."""
    tus.check_version(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != PART_KIND:
        raise Unsupported("unsupported_media_type", f"a part is sent with the header Content-Type: {PART_KIND}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Unsupported("unsupported_encoding", "send the part as it is, without Content-Encoding")
    offset = tus.whole_number(request, "Upload-Offset")
    checksum = tus.read_part_checksum(request.headers.get("upload-checksum"))
    row = await in_thread(site, lambda: _find(site, caller, upload))
    async with tus.locked(site, row):
        row = await in_thread(site, lambda: _find(site, caller, upload))
        expected = await in_thread(site, lambda: tus.true_offset(site, row))
        if offset != expected:
            detail = f"this upload goes on at {expected}, not at {offset}"
            raise Conflict("upload_offset_conflict", detail, offset=expected)
        if not row.finished:
            await in_thread(site, lambda: check_room(site, row.length - expected))
            offset = await tus.append(request, site, row, offset, checksum)
    headers = {"Upload-Offset": str(offset), "Graft-Dataset-Id": row.dataset_id}
    return _answer(204, headers | _expires(row))


@router.delete(
    "/{upload}", status_code=204, summary="Give an upload up", response_class=Response,
    responses=_done(204, "Forgotten") | problems(401, 404, 412, 423, 503), openapi_extra=_given("Tus-Resumable"),
)  # fmt: skip
async def delete_upload(request: Request, site: SiteDep, caller: CallerDep, upload: UploadId) -> Response:
    """Its bytes are freed. A dataset that is complete already stays."""
    tus.check_version(request)
    row = await in_thread(site, lambda: _find(site, caller, upload))
    async with tus.locked(site, row):
        await in_thread(site, lambda: tus.terminate(site, row))
    return _answer(204, {})


def _find(site: Site, caller: Caller, upload_id: str) -> UploadRow:
    with reading(site.engine) as session:
        return uploads.get_upload(session, caller.workspace_id, upload_id)


def _name(metadata: dict[str, str]) -> str:
    name = (metadata.get("name") or metadata.get("filename") or "dataset").strip()
    try:
        check_printable(name)
    except ValueError as error:
        raise Invalid("validation_error", f"Upload-Metadata.name: {error}") from error
    if not 0 < len(name) <= 200:
        raise Invalid("validation_error", "Upload-Metadata.name: 1 to 200 characters")
    return name


def _sha256(metadata: dict[str, str]) -> str | None:
    given = metadata.get("sha256", "").strip().lower()
    if given and not (len(given) == 64 and set(given) <= set("0123456789abcdef")):
        raise Invalid("bad_checksum", "Upload-Metadata.sha256 must be 64 hexadecimal digits")
    return given or None


def _expires(row: UploadRow) -> dict[str, str]:
    return {} if row.finished else {"Upload-Expires": formatdate(row.expires_at, usegmt=True)}


def _answer(status: int, headers: dict[str, str]) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": tus.VERSION} | headers)
