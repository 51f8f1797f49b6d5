"""Sources: where weights can come from. Published ones are listed, one's own are registered as safetensors."""

import secrets
import shutil
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request, Response

from api.afterwards import free
from api.auth import Caller, CallerDep
from api.ids import SourceId
from api.json_body import check_text, parse
from api.schemas.page import Cursor, Limit, Page
from api.schemas.problem import problems
from api.schemas.source import Source, show_published, show_scratch, show_source
from api.schemas.text import Name
from api.site import Site, SiteDep
from api.streams import PIECE_BYTES, check_raw, given_sha256, in_thread, take
from api.transactions import ReadDep, WriteDep
from domain.catalogue import BackboneFacts, catalogue
from domain.errors import Invalid
from domain.ids import new_id
from intake.model_file import check_safetensors
from store import datasets
from store.pages import read_cursor, write_cursor
from store.session import transaction

router = APIRouter(prefix="/v1/sources", tags=["sources"])

KINDS = frozenset({"application/octet-stream", "application/x-safetensors", "application/vnd.safetensors"})
CURL = (
    "curl -X POST -H 'Authorization: Bearer <key>' -H 'Content-Type: application/octet-stream' "
    "-T model.safetensors 'http://<host>/v1/sources?backbone=resnet18'"
)
MAX_CLASSES = 100_000
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A safetensors file. Anything else is refused and nothing is ever unpickled; `graft convert` "
        "turns a .pth state dict into one on your own machine.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("", summary="List sources", response_model=Page[Source], responses=problems(400, 401, 422, 503))
def list_sources(session: ReadDep, caller: CallerDep, limit: Limit = 50, cursor: Cursor = None) -> Page[Source]:
    """The workspace's own sources, newest first, then the published weights of every backbone, then training from
    scratch. Finished jobs are sources too: name the job."""
    shared = _shared_sources()
    if cursor is not None and cursor.startswith("c."):
        start = int(str(read_cursor(cursor[2:], (int,))[0]))
        if start < 0:
            raise Invalid("bad_cursor", "this cursor was not given by this list")
        return _shared_page([], shared, start, limit)
    found = datasets.list_sources(session, caller.workspace_id, limit=limit, cursor=cursor)
    own = [show_source(row) for row in found.items]
    if found.next_cursor is not None:
        return Page(items=own, next_cursor=found.next_cursor)
    return _shared_page(own, shared, 0, limit)


@router.get("/{source}", summary="Show a source", response_model=Source, responses=problems(401, 404, 503))
def get_source(session: ReadDep, caller: CallerDep, source: SourceId) -> Source:
    """One registered source."""
    return show_source(datasets.get_source(session, caller.workspace_id, source))


@router.post(
    "", status_code=201, summary="Register weights", response_model=Source,
    responses=problems(400, 401, 408, 413, 415, 422, 503, 507), openapi_extra=_BODY,
)  # fmt: skip
async def create_source(
    request: Request, response: Response, site: SiteDep, caller: CallerDep,
    backbone: Annotated[str, Query(max_length=80, examples=["resnet18"])],
    name: Annotated[Name | None, Query(description="Default: the backbone's name.")] = None,
    licence: Annotated[Name, Query(examples=["Apache-2.0"])] = "unknown",
    classes: Annotated[
        str, Query(max_length=200_000, description="JSON list: the classes of the head, in order.", examples=["[]"])
    ] = "[]",
) -> Source:  # fmt: skip
    """The body is the safetensors file. Its header is checked here; names and shapes once more when a job loads it."""
    check_raw(request, KINDS, CURL)
    catalogue().backbone(backbone)
    labels = _read_classes(classes)
    sha256 = given_sha256(request)
    partial = site.uploads / f"source-{secrets.token_hex(8)}.partial"
    try:
        await take(request, site, lambda body: _save(body, partial), max_bytes=site.settings.max_upload_bytes)

        def keep() -> Source:
            return _keep(site, caller, partial, sha256, name or backbone, backbone, labels, licence)

        shown = await in_thread(site, keep)
    finally:
        await in_thread(site, lambda: partial.unlink(missing_ok=True))
    response.headers["Location"] = f"/v1/sources/{shown.id}"
    return shown


@router.delete("/{source}", status_code=204, summary="Delete a source", responses=problems(401, 404, 409, 503))
def delete_source(session: WriteDep, site: SiteDep, caller: CallerDep, source: SourceId) -> None:
    """Frees its bytes. 409 `still_needed` with the list of jobs while unfinished jobs start from it."""
    free(session, site, datasets.delete_source(session, caller.workspace_id, source))


def _shared_sources() -> list[Source]:
    backbones = catalogue().backbones
    published = [show_published(backbone, weights) for backbone in backbones for weights in backbone.weights]
    return published + [show_scratch(backbone) for backbone in backbones]


def _shared_page(own: list[Source], shared: list[Source], start: int, limit: int) -> Page[Source]:
    end = start + limit - len(own)
    more = end < len(shared)
    return Page(items=own + shared[start:end], next_cursor=f"c.{write_cursor(end)}" if more else None)


def _read_classes(text: str) -> list[str]:
    value = parse(text.encode("utf-8", "surrogatepass"))
    if not isinstance(value, list) or not all(isinstance(item, str) and 0 < len(item) <= 200 for item in value):
        raise Invalid("validation_error", "query.classes: give a JSON list of class names")
    if len(value) > MAX_CLASSES or len(set(value)) < len(value):
        raise Invalid("validation_error", f"query.classes: at most {MAX_CLASSES} classes, each once")
    return [check_text(item, "query.classes") for item in value]


def _head_width(tensors: dict[str, dict[str, Any]], backbone: BackboneFacts) -> int:
    """How many classes the linear head in a file tells apart, under Graft's name or torchvision's; 0 without one."""
    named = (tensors.get(f"{prefix}.weight") for prefix in ("head", backbone.head) if prefix is not None)
    return next((int(found["shape"][0]) for found in named if found is not None and len(found["shape"]) > 1), 0)


def _save(body: BinaryIO, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(body, file, PIECE_BYTES)


def _keep(
    site: Site,
    caller: Caller,
    path: Path,
    sha256: str | None,
    name: str,
    backbone: str,
    classes: list[str],
    licence: str,
) -> Source:
    n_classes = _head_width(check_safetensors(path), catalogue().backbone(backbone))
    if classes and n_classes and len(classes) != n_classes:
        raise Invalid("classes_differ", f"the head in the file has {n_classes} classes, and {len(classes)} are named")
    source_id = new_id("source")
    key = f"{caller.workspace_id}/sources/{source_id}/weights.safetensors"
    info = site.blobs.put(key, path, sha256=sha256)
    with transaction(site.engine) as session:
        row = datasets.insert_source(
            session, caller.workspace_id, source_id=source_id, name=name, backbone=backbone, blob=key, info=info,
            n_classes=n_classes or len(classes), classes=tuple(classes), licence=licence,
        )  # fmt: skip
        return show_source(row)
