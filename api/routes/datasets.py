"""Datasets: upload the archive itself as the body, read what was found in it, delete it."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError

from api.afterwards import free, wake
from api.auth import Caller, CallerDep
from api.ids import DatasetId
from api.json_body import StrictRoute, parse
from api.problems import plain_message
from api.schemas.dataset import Dataset, DatasetOptions, show_dataset
from api.schemas.page import Cursor, Limit, Page
from api.schemas.problem import problems
from api.schemas.text import Name
from api.site import Site, SiteDep
from api.streams import check_raw, given_sha256, in_thread, take
from api.transactions import ReadDep, WriteDep
from domain.catalogue import catalogue
from domain.dataset import Finding
from domain.errors import Invalid
from domain.ids import new_id
from domain.ports import BlobInfo
from domain.states import DatasetState
from store import datasets
from store.session import transaction

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=StrictRoute)

KINDS = frozenset({
    "application/zip", "application/x-zip-compressed", "application/x-tar", "application/gzip", "application/x-gzip",
    "application/x-gtar", "application/x-compressed-tar", "application/octet-stream",
})  # fmt: skip
CURL = "curl -H 'Authorization: Bearer <key>' -T photos.zip http://<host>/v1/datasets/photos.zip"
_REFUSALS = problems(400, 401, 408, 413, 415, 422, 503, 507)
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The archive itself: zip, tar or tar.gz. Chunked transfer is fine.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/zip", "application/x-tar", "application/gzip", "application/octet-stream")
        },
    },
    "parameters": [
        {
            "name": "X-Checksum-Sha256", "in": "header", "required": False,
            "description": "SHA-256 of the body in hexadecimal digits; `Repr-Digest: sha-256=:<base64>:` does as well.",
            "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
        }
    ],
}  # fmt: skip

_NameQuery = Annotated[Name, Query(description="What to call it.", examples=["flowers"])]
_TaskQuery = Annotated[str, Query(max_length=40, examples=["classification"])]
_OptionsQuery = Annotated[
    str, Query(max_length=4000, description="JSON: see DatasetOptions.", examples=['{"n_labelled_per_class": 10}'])
]


@router.post(
    "", status_code=201, summary="Upload a dataset", response_model=Dataset, responses=_REFUSALS, openapi_extra=_BODY
)
async def create_dataset(
    request: Request, response: Response, site: SiteDep, caller: CallerDep, name: _NameQuery = "dataset",
    task: _TaskQuery = "classification", options: _OptionsQuery = "{}",
) -> Dataset:  # fmt: skip
    """The body is the archive. The answer comes when it is stored; then a worker checks it: CHECKING, then READY or
    REJECTED. Give a checksum and a broken transfer is refused."""
    return await _receive(request, response, site, caller, name, task, options)


@router.put(
    "/{dataset}", status_code=201, summary="Upload a dataset under a name", response_model=Dataset,
    responses=_REFUSALS, openapi_extra=_BODY,
)  # fmt: skip
async def put_dataset(
    request: Request, response: Response, site: SiteDep, caller: CallerDep,
    dataset: Annotated[Name, Path(description="What to call it.", examples=["photos.zip"])],
    task: _TaskQuery = "classification", options: _OptionsQuery = "{}",
) -> Dataset:  # fmt: skip
    """The same with the name in the path, so that `curl -T photos.zip …/v1/datasets/photos.zip` works. Every upload is
    a new dataset: datasets never change."""
    return await _receive(request, response, site, caller, dataset, task, options)


@router.get("", summary="List datasets", response_model=Page[Dataset], responses=problems(400, 401, 422, 503))
def list_datasets(
    session: ReadDep, caller: CallerDep, state: DatasetState | None = None, limit: Limit = 50, cursor: Cursor = None
) -> Page[Dataset]:
    """The datasets of the workspace, newest first."""
    found = datasets.list_datasets(session, caller.workspace_id, state=state, limit=limit, cursor=cursor)
    return Page(items=[show_dataset(row) for row in found.items], next_cursor=found.next_cursor)


@router.get("/{dataset}", summary="Show a dataset", response_model=Dataset, responses=problems(401, 404, 503))
def get_dataset(session: ReadDep, caller: CallerDep, dataset: DatasetId) -> Dataset:
    """State, statistics, what was found, and why it was rejected if it was."""
    return show_dataset(datasets.get_dataset(session, caller.workspace_id, dataset))


@router.get(
    "/{dataset}/findings", summary="List what was found", response_model=Page[Finding],
    responses=problems(400, 401, 404, 422, 503),
)  # fmt: skip
def list_findings(
    session: ReadDep, caller: CallerDep, dataset: DatasetId, limit: Limit = 50, cursor: Cursor = None
) -> Page[Finding]:
    """Every finding, machine-readable: files left out, near-duplicates, imbalance and the like."""
    row = datasets.get_dataset(session, caller.workspace_id, dataset)
    found = row.findings or []
    start = _offset(cursor)
    page = [Finding.model_validate(item) for item in found[start : start + limit]]
    more = start + limit < len(found)
    return Page(items=page, next_cursor=str(start + limit) if more else None)


@router.delete("/{dataset}", status_code=204, summary="Delete a dataset", responses=problems(401, 404, 409, 503))
def delete_dataset(session: WriteDep, site: SiteDep, caller: CallerDep, dataset: DatasetId) -> None:
    """Frees its bytes. 409 `still_needed` with the list of jobs while unfinished jobs need it."""
    free(session, site, datasets.delete_dataset(session, caller.workspace_id, dataset))


def read_options(text: str, where: str = "options") -> dict[str, Any]:
    """The options of a dataset from their JSON; only what was given is kept."""
    try:
        options = TypeAdapter(DatasetOptions).validate_python(parse(text.encode("utf-8", "surrogatepass"), where))
    except ValidationError as error:
        said = "; ".join(f"{'.'.join([where, *map(str, e['loc'])])}: {plain_message(e)}" for e in error.errors()[:5])
        raise Invalid("validation_error", said) from error
    return options.model_dump(mode="json", exclude_unset=True)


def upload_key(workspace_id: str, dataset_id: str) -> str:
    """Where the bytes of an upload lie."""
    return f"{workspace_id}/datasets/{dataset_id}/upload"


async def _receive(
    request: Request, response: Response, site: Site, caller: Caller, name: str, task: str, options: str
) -> Dataset:
    check_raw(request, KINDS, CURL)
    catalogue().task(task)
    kept = read_options(options)
    sha256 = given_sha256(request)
    dataset_id = new_id("dataset")
    key = upload_key(caller.workspace_id, dataset_id)
    info = await take(
        request, site, lambda body: site.blobs.put(key, body, sha256=sha256), max_bytes=site.settings.max_upload_bytes
    )
    if info.size_bytes == 0:
        await in_thread(site, lambda: site.blobs.delete(key))
        raise Invalid("upload_empty", f"the body is empty; send the file itself: {CURL}", curl=CURL)

    def note() -> Dataset:
        return _note(site, caller, dataset_id, name, task, kept, info)

    shown = await in_thread(site, note)
    response.headers["Location"] = f"/v1/datasets/{dataset_id}"
    return shown


def _note(
    site: Site, caller: Caller, dataset_id: str, name: str, task: str, options: dict[str, Any], info: BlobInfo
) -> Dataset:
    with transaction(site.engine) as session:
        row = datasets.insert_dataset(
            session, caller.workspace_id, name=name, task=task, options=options, dataset_id=dataset_id
        )
        datasets.finish_upload(session, row, upload_key(caller.workspace_id, dataset_id), info)
        wake(session, site, "prepare_dataset", dataset_id)
        return show_dataset(row)


def _offset(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 9:
        raise Invalid("bad_cursor", "this cursor was not given by this list; leave it out to start at the beginning")
    return int(cursor)
