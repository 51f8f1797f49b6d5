"""Keys of the workspace, and the workspace itself."""

from fastapi import APIRouter, Response
from sqlalchemy import func, select

from api.auth import CallerDep
from api.ids import KeyId
from api.json_body import StrictRoute
from api.schemas.key import Key, KeyCreate, NewKey, Workspace
from api.schemas.page import Page, moment
from api.schemas.problem import problems
from api.transactions import ReadDep, WriteDep
from domain.errors import Conflict, NotFound
from domain.states import DatasetState
from store import keys
from store.blob_rows import used_bytes
from store.tables import ApiKeyRow, DatasetRow, JobRow, SourceRow, WorkspaceRow

router = APIRouter(prefix="/v1", tags=["keys"], route_class=StrictRoute)


@router.get("/keys", summary="List keys", response_model=Page[Key], responses=problems(401, 503))
def list_keys(session: ReadDep, caller: CallerDep) -> Page[Key]:
    """The live keys of the workspace, oldest first; their secrets are known to nobody."""
    return Page(items=[_show(row) for row in keys.list_keys(session, caller.workspace_id)])


@router.post(
    "/keys",
    status_code=201,
    summary="Make a key",
    response_model=NewKey,
    responses=problems(400, 401, 413, 415, 422, 503),
)
def create_key(session: WriteDep, response: Response, caller: CallerDep, body: KeyCreate) -> NewKey:
    """The plaintext is in this answer and nowhere else."""
    row, plaintext = keys.create_key(session, caller.workspace_id, body.name)
    response.headers["Location"] = f"/v1/keys/{row.id}"
    return NewKey(**_show(row).model_dump(), key=plaintext)


@router.delete("/keys/{key}", status_code=204, summary="Revoke a key", responses=problems(401, 404, 409, 503))
def delete_key(session: WriteDep, caller: CallerDep, key: KeyId) -> None:
    """It opens nothing from now on. The last key stays: without one nobody could come in again."""
    live = [row.id for row in keys.list_keys(session, caller.workspace_id)]
    if live == [key]:
        raise Conflict("last_key", "this is the last key of the workspace; make another one first")
    keys.revoke_key(session, caller.workspace_id, key)


@router.get("/workspace", summary="Show the workspace", response_model=Workspace, responses=problems(401, 503))
def get_workspace(session: ReadDep, caller: CallerDep) -> Workspace:
    """The workspace of the key, and what it holds."""
    row = session.get(WorkspaceRow, caller.workspace_id)
    if row is None:
        raise NotFound("workspace_not_found", "the workspace of this key is gone")
    mine = caller.workspace_id
    counts = [
        select(func.count()).where(DatasetRow.workspace_id == mine, DatasetRow.state != DatasetState.DELETED),
        select(func.count()).where(JobRow.workspace_id == mine),
        select(func.count()).where(SourceRow.workspace_id == mine, SourceRow.deleted_at.is_(None)),
    ]
    n_datasets, n_jobs, n_sources = (int(session.scalar(query) or 0) for query in counts)
    return Workspace(
        id=row.id, name=row.name, created_at=moment(row.created_at), n_datasets=n_datasets, n_jobs=n_jobs,
        n_sources=n_sources, stored_bytes=used_bytes(session, mine),
    )  # fmt: skip


def _show(row: ApiKeyRow) -> Key:
    return Key(id=row.id, name=row.name, prefix=row.prefix, created_at=moment(row.created_at))
